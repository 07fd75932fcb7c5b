// What a feature being less than usual means to the user, in words, the most important first.
const WORDS = [
  ["delivery", "The server takes no messages right now. Yours are kept and will be sent."],
  ["history", "Older messages may take a while to load."],
  ["receipts", "Read marks come late right now."],
  ["presence", "Who is online isn’t known right now."],
  ["typing", "Who is typing isn’t shown right now."],
];

// `modes`: feature → state, as the server told them since `ready`.
export function modeWords(modes) {
  return WORDS.filter(([feature]) => (modes.get(feature) ?? "normal") !== "normal").map(([, words]) => words).slice(0, 2).join(" ");
}
