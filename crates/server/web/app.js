// The page: signing in, what the user does, and when to draw.

import { Api } from "./api.js";
import { Chat } from "./chat.js";
import { modeWords } from "./modes.js";
import { $, View } from "./view.js";

// How far from the end still counts as looking at it, in pixels.
const NEAR = 60;
// A connection that comes within this is not worth a word.
const QUIET_MS = 1_200;

const api = new Api(sessionStorage);
let chat = null;
let view = null;
let due = false;
let downSince = 0;
let endedWith = 0;

const ENDED = {
  4005: ["This chat was opened in another window.", "Use it here"],
  4010: ["This page is too old for the server.", "Reload"],
};

function show(screen) {
  $("sign-in").hidden = screen !== "sign-in";
  $("app").hidden = screen !== "app";
}

function say(id, text) {
  $(id).textContent = text;
  if (id !== "sign-in-error") $(id).hidden = !text;
}

// Draws at most once a frame; a hidden page has no frames, but a title.
function changed() {
  if (due || !chat) return;
  due = true;
  const draw = () => {
    due = false;
    if (!chat) return;
    view.draw();
    drawState();
    // What was just drawn, at the end of the open conversation, has been seen.
    if (document.hasFocus() && view.atEnd && view.shown) chat.look(view.shown);
  };
  if (document.visibilityState === "visible") requestAnimationFrame(draw);
  else setTimeout(draw, 200);
}

function drawState() {
  const now = performance.now();
  if (chat.online) downSince = 0;
  else downSince ||= now;
  const tell = endedWith || (downSince && now - downSince > QUIET_MS);
  if (downSince && !tell) setTimeout(changed, QUIET_MS);
  const less = tell ? "" : modeWords(chat.modes);
  $("state").hidden = !tell && !less;
  if (less) {
    $("state-text").textContent = less;
    $("state-action").hidden = true;
  }
  if (!tell) return;
  const [text, action] = endedWith
    ? (ENDED[endedWith] ?? [`The server ended the connection (${endedWith}).`, "Connect again"])
    : ["You are offline. Messages will be sent when you are back.", "Try now"];
  $("state-text").textContent = text;
  $("state-action").textContent = action;
  $("state-action").hidden = false;
}

function start() {
  endedWith = 0;
  downSince = 0;
  chat = new Chat({ api, storage: sessionStorage, changed, ended });
  view = new View(chat);
  show("app");
  chat.openId = idOfUrl();
  chat.start();
  changed();
}

function ended(code) {
  if (code === 4002 || !api.session) {
    api.keep(null);
    return leave("You have been signed out. Please sign in again.");
  }
  endedWith = code;
  changed();
}

function leave(text) {
  chat = null;
  view = null;
  for (const id of ["conversations", "messages", "members"]) $(id).replaceChildren();
  document.title = "tidings";
  show("sign-in");
  say("sign-in-error", text);
  $("name").focus();
}

function idOfUrl() {
  const id = location.hash.slice(1);
  return /^[0-9a-f]{16}$/.test(id) ? id : null;
}

addEventListener("hashchange", () => {
  if (!chat) return;
  draft();
  chat.openId = idOfUrl();
  $("people").open = false;
  $("text").value = drafts.get(chat.openId) ?? "";
  grow();
  changed();
  if (chat.openId && matchMedia("(min-width: 44rem)").matches) requestAnimationFrame(() => $("text").focus());
});

// What was begun in each conversation stays there.
const drafts = new Map();
function draft() {
  if (chat.openId) drafts.set(chat.openId, $("text").value);
}

function open(id) {
  location.hash = id;
}

// Runs what a form asks for, with its buttons off meanwhile, and says what went wrong.
async function busy(form, errorId, work) {
  const buttons = form.querySelectorAll("button");
  for (const button of buttons) button.disabled = true;
  say(errorId, "");
  try {
    await work();
  } catch (error) {
    if (error.signedOut) return ended(4002);
    const wait = error.retryAfter ? ` Try again in ${Math.ceil(error.retryAfter / 1000)} s.` : "";
    say(errorId, error.message + wait);
  } finally {
    for (const button of buttons) button.disabled = false;
  }
}

$("sign-in-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const how = event.submitter?.id === "register" ? "register" : "login";
  busy(event.target, "sign-in-error", async () => {
    await api.signIn(how, $("name").value.trim(), $("password").value, "Web page");
    $("password").value = "";
    start();
  });
});

$("sign-out").addEventListener("click", async () => {
  const waiting = chat.waitingCount();
  if (waiting && !confirm(`${waiting} of your messages have not been sent. Sign out and lose them?`)) return;
  const { me } = chat;
  chat.stop();
  sessionStorage.removeItem(`tidings.outbox.${me}`);
  sessionStorage.removeItem(`tidings.receipts.${me}`);
  drafts.clear();
  history.replaceState(null, "", location.pathname);
  leave("");
  await api.signOut();
});

$("find-form").addEventListener("submit", (event) => {
  event.preventDefault();
  busy(event.target, "find-error", async () => {
    open(await chat.chatWith($("find").value.trim()));
    $("find").value = "";
  });
});

$("group-form").addEventListener("submit", (event) => {
  event.preventDefault();
  busy(event.target, "find-error", async () => {
    open(await chat.createGroup($("group").value.trim()));
    $("group").value = "";
  });
});

$("add-form").addEventListener("submit", (event) => {
  event.preventDefault();
  busy(event.target, "add-error", async () => {
    await chat.addMember(chat.openId, $("add").value.trim());
    $("add").value = "";
  });
});

$("leave").addEventListener("click", () => {
  if (!confirm("Leave this group? You won't get its messages any more.")) return;
  busy($("people"), "add-error", async () => {
    await chat.leave(chat.openId);
    open("");
  });
});

$("conversations").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) open(button.dataset.id);
});

$("back").addEventListener("click", () => open(""));
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !chat) return;
  if ($("people").open) $("people").open = false;
  else if (chat.openId) open("");
});
document.addEventListener("click", (event) => {
  if (!$("people").contains(event.target)) $("people").open = false;
});

$("messages").addEventListener("click", (event) => {
  const { action, id } = event.target.dataset;
  const { openId } = chat;
  const message = [...chat.outbox.failed(openId), ...chat.outbox.waiting(openId)].find((m) => m.id === id);
  if (!message) return;
  if (action === "again") chat.again(openId, message);
  if (action === "discard") chat.discard(openId, message);
});

$("older").addEventListener("click", () => chat.older(chat.openId));

$("scroll").addEventListener("scroll", () => {
  const { scrollTop, clientHeight, scrollHeight } = $("scroll");
  if (!view) return;
  view.atEnd = scrollTop + clientHeight >= scrollHeight - NEAR;
  if (scrollTop < NEAR && scrollHeight > clientHeight) chat.older(chat.openId);
  if (view.atEnd) changed();
}, { passive: true });

// A smaller window, a phone's keyboard: the end stays in sight.
new ResizeObserver(() => {
  if (view?.atEnd) $("scroll").scrollTop = $("scroll").scrollHeight;
}).observe($("scroll"));

function grow() {
  const text = $("text");
  text.style.height = "auto";
  text.style.height = `${text.scrollHeight + 2}px`;
}

$("text").addEventListener("input", () => {
  grow();
  chat.type(chat.openId, $("text").value.trim() !== "");
});

$("text").addEventListener("keydown", (event) => {
  // Enter while composing (Japanese, Chinese …) chooses a word.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("send-form").requestSubmit();
});

$("send-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text || $("text").disabled) return;
  const most = chat.limits.text_bytes_max ?? 16_384;
  if (new TextEncoder().encode(text).length > most) return refuse(`That is too long: a message has at most ${Math.floor(most / 1024)} KB.`);
  if (!chat.write(chat.openId, text)) return refuse("Too many messages are waiting to be sent.");
  $("text").value = "";
  view.atEnd = true;
  grow();
  $("text").focus();
});

function refuse(text) {
  $("text").setCustomValidity(text);
  $("text").reportValidity();
  $("text").addEventListener("input", () => $("text").setCustomValidity(""), { once: true });
}

$("state-action").addEventListener("click", () => {
  if (endedWith === 4010) return location.reload();
  if (!endedWith) return chat.connection.hurry();
  chat.stop();
  start();
});

document.addEventListener("visibilitychange", () => {
  if (!chat) return;
  chat.showPresence();
  if (document.visibilityState === "visible") chat.connection.hurry();
  changed();
});
addEventListener("focus", changed);

if (api.session) start();
else {
  show("sign-in");
  $("name").focus();
}
