// Drawing. Whatever people wrote gets onto the page as text and in no other way.

import { NONE } from "./outbox.js";

const day = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" });
const dayOfYear = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "long", year: "numeric" });
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const shortDay = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const full = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "medium" });

// Messages of one person within this are drawn as one block.
const BLOCK_US = 5 * 60 * 1_000_000;

// What becomes of an own message: words, and the lines of a sign 18 × 12.
const ONE_TICK = "M4 6.5l3.2 3.2L14 2.5";
const TWO_TICKS = "M1 6.5l3.2 3.2L11 2.5M8.3 9.7L15.7 2.5";
const TICKS = {
  waiting: ["Waiting", "M9 1.5a4.5 4.5 0 1 1 0 9a4.5 4.5 0 1 1 0-9M9 3.7V6.2l1.7 1"],
  sent: ["Sent", ONE_TICK],
  delivered: ["Delivered", TWO_TICKS],
  read: ["Read", TWO_TICKS],
  failed: ["Not sent", "M9 1.5v5.5M9 9.8v.7"],
};

const FAILED = {
  too_long: "It is too long.", refused: "The server refused it.", forbidden: "You may not write here.", waits: "You may not write here now. It will be sent when you may again.",
};

export const $ = (id) => document.getElementById(id);

export function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function tick(status) {
  const [words, lines] = TICKS[status];
  const svg = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const element = svg("svg", { class: "tick", viewBox: "0 0 18 12", role: "img", "aria-label": words });
  const title = svg("title", {});
  title.textContent = words;
  element.append(title, svg("path", { d: lines }));
  return element;
}

const date = (us) => new Date(us / 1000);

function when(us) {
  const at = date(us);
  return at.toDateString() === new Date().toDateString() ? clock.format(at) : shortDay.format(at);
}

function dayName(us) {
  const at = date(us);
  const today = new Date();
  const yesterday = new Date(today.getFullYear(), today.getMonth(), today.getDate() - 1);
  if (at.toDateString() === today.toDateString()) return "Today";
  if (at.toDateString() === yesterday.toDateString()) return "Yesterday";
  return (today - at < 300 * 86_400_000 ? day : dayOfYear).format(at);
}

function draw(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// A circle with the first letter of a name, in a colour of its own.
export function face(element, id, name) {
  draw(element, name === "…" ? "" : [...name][0]?.toUpperCase() ?? "");
  element.style.setProperty("--hue", String(parseInt(id.slice(-4), 16) % 360));
}

export class View {
  constructor(chat) {
    Object.assign(this, { chat, rows: new Map(), drawn: new Map(), shown: null, atEnd: true });
  }

  draw() {
    const { chat } = this;
    draw($("me"), chat.name);
    this.drawList();
    this.drawPane(chat.timelines.get(chat.openId));
    const unread = chat.list().reduce((sum, t) => sum + t.unread(chat.me).count, 0);
    document.title = unread ? `(${unread}) tidings` : "tidings";
  }

  drawList() {
    const { chat } = this;
    const list = chat.list();
    const items = list.map((timeline) => {
      const row = this.rows.get(timeline.id) ?? this.row(timeline.id);
      const title = chat.title(timeline);
      face(row.face, timeline.kind === "direct" ? timeline.otherUser(chat.me) ?? timeline.id : timeline.id, title);
      row.face.dataset.state = this.presence(timeline)?.state ?? "";
      draw(row.title, title);
      draw(row.preview, this.preview(timeline));
      const last = timeline.last();
      draw(row.when, last ? when(last.ts) : "");
      const { count, more } = timeline.unread(chat.me);
      draw(row.badge, count ? `${count}${more ? "+" : ""}` : "");
      row.badge.hidden = !count;
      row.badge.setAttribute("aria-label", count ? `${count} unread` : "");
      row.button.setAttribute("aria-current", String(timeline.id === chat.openId));
      return row.item;
    });
    replace($("conversations"), items);
    for (const id of this.rows.keys()) if (!list.some((t) => t.id === id)) this.rows.delete(id);
  }

  row(id) {
    const row = {
      item: make("li"), button: make("button", "conversation"), face: make("span", "face"), title: make("span", "title"),
      preview: make("span", "preview"), when: make("span", "when"), badge: make("span", "badge"),
    };
    row.button.type = "button";
    row.button.dataset.id = id;
    const lines = make("span", "lines");
    lines.append(row.title, row.when, row.preview, row.badge);
    row.face.setAttribute("aria-hidden", "true");
    row.button.append(row.face, lines);
    row.item.append(row.button);
    this.rows.set(id, row);
    return row;
  }

  preview(timeline) {
    const { chat } = this;
    const typing = this.typing(timeline);
    if (typing) return typing;
    const waiting = chat.outbox.waiting(timeline.id).at(-1);
    if (waiting) return `You: ${waiting.body}`;
    const last = timeline.last();
    if (!last) return "";
    if (last.type === "members") return this.membersText(last, timeline);
    const who = last.user === chat.me ? "You: " : timeline.kind === "direct" ? "" : `${chat.people.name(last.user)}: `;
    return who + bodyText(last);
  }

  presence(timeline) {
    const other = timeline.otherUser(this.chat.me);
    return other ? this.chat.people.presence.get(other) : null;
  }

  subtitle(timeline) {
    if (timeline.role === "none") return "You are no longer a member.";
    if (timeline.kind !== "direct") {
      const count = timeline.members.size;
      return count ? `${count} ${count === 1 ? "member" : "members"}` : "";
    }
    const presence = this.presence(timeline);
    if (!presence) return "";
    if (presence.state !== "offline") return presence.state;
    if (!presence.lastSeen) return "offline";
    const at = date(presence.lastSeen);
    const today = at.toDateString() === new Date().toDateString();
    return `last seen ${today ? "" : `${shortDay.format(at)}, `}${clock.format(at)}`;
  }

  typing(timeline) {
    const who = [...(this.chat.typing.get(timeline.id)?.keys() ?? [])].map((u) => this.chat.people.name(u));
    if (!who.length) return "";
    if (who.length > 3) return "Several people are typing …";
    return `${who.join(", ")} ${who.length === 1 ? "is" : "are"} typing …`;
  }

  drawPane(timeline) {
    const { chat } = this;
    const open = Boolean(timeline);
    document.body.dataset.view = chat.openId ? "chat" : "list";
    $("pane-header").hidden = $("scroll").hidden = $("send-form").hidden = !open;
    $("empty").hidden = open;
    draw($("empty-text"), this.emptyText());
    if (!open) {
      draw($("typing"), "");
      this.shown = null;
      return;
    }
    const title = chat.title(timeline);
    draw($("title"), title);
    draw($("subtitle"), this.subtitle(timeline));
    face($("face"), timeline.kind === "direct" ? timeline.otherUser(chat.me) ?? timeline.id : timeline.id, title);
    $("face").dataset.state = this.presence(timeline)?.state ?? "";
    draw($("typing"), this.typing(timeline));
    const mayWrite = chat.mayWrite(timeline);
    $("text").disabled = $("send").disabled = !mayWrite;
    $("text").placeholder = mayWrite ? "Write a message" : timeline.role === "none" ? "You are no longer a member" : "You can read here, not write";
    this.drawMembers(timeline);
    this.drawMessages(timeline);
  }

  emptyText() {
    const { chat } = this;
    if (chat.openId) return chat.synced && chat.openId !== chat.expected ? "This conversation is not there, or not for you." : "Opening …";
    if (!chat.synced && !chat.timelines.size) return "Loading …";
    return chat.timelines.size ? "Choose a conversation." : "Find somebody by name to begin.";
  }

  drawMembers(timeline) {
    const { chat } = this;
    const group = timeline.kind !== "direct";
    $("people").hidden = !group || timeline.role === "none";
    $("add-form").hidden = timeline.role !== "owner" && timeline.role !== "admin";
    if (!group) return;
    const items = [...timeline.members].map(([user, role]) => {
      const name = chat.people.name(user) + (user === chat.me ? " (you)" : "");
      const item = make("li");
      item.append(make("span", "", name), make("small", "", role === "member" ? "" : role));
      return item;
    });
    $("members").replaceChildren(...items);
  }

  // Every item has a key and a signature: what is drawn already and the same stays as it is.
  drawMessages(timeline) {
    const scroll = $("scroll");
    const other = this.shown !== timeline.id;
    if (other) {
      this.drawn.clear();
      Object.assign(this, { shown: timeline.id, atEnd: true });
    }
    const height = scroll.scrollHeight;
    const top = scroll.scrollTop;
    const first = $("messages").firstElementChild;
    const elements = this.items(timeline).map((item) => {
      const signature = JSON.stringify(item);
      const known = this.drawn.get(item.key);
      if (known?.signature === signature) return known.element;
      const element = this.element(item, timeline);
      this.drawn.set(item.key, { signature, element });
      return element;
    });
    replace($("messages"), elements);
    $("older").hidden = !timeline.hasOlder;
    $("older").disabled = !this.chat.online || this.chat.loadingOlder(timeline.id);
    if (this.atEnd) scroll.scrollTop = scroll.scrollHeight;
    else if (first && first !== elements[0]) scroll.scrollTop = top + scroll.scrollHeight - height;
  }

  items(timeline) {
    const { chat } = this;
    const items = [];
    const ids = new Set();
    let lastDay = "";
    let before = null;
    const put = (item) => {
      const name = dayName(item.at);
      if (name !== lastDay) {
        items.push({ key: `day ${name}`, note: name, day: true, at: item.at });
        before = null;
      }
      lastDay = name;
      item.follows = Boolean(before && !item.note && before.user === item.user && item.at - before.at < BLOCK_US);
      before = item.note ? null : item;
      items.push(item);
    };
    for (const event of timeline.events) {
      if (event.type === "members") {
        put({ key: `s${event.seq}`, note: this.membersText(event, timeline), at: event.ts });
        continue;
      }
      ids.add(event.id);
      if (event.kind === "empty") continue;
      const mine = event.user === chat.me;
      put({
        key: mine ? `m${event.id}` : `s${event.seq}`, user: event.user, mine, name: chat.people.name(event.user), body: bodyText(event),
        code: event.kind !== "text", at: event.ts, status: mine ? timeline.reached(event.seq, chat.me) : "",
      });
    }
    const own = (message, status) => {
      if (ids.has(message.id)) return;
      put({ key: `m${message.id}`, user: chat.me, mine: true, body: message.body, at: message.ts ?? message.at, status, id: message.id, why: message.code });
    };
    for (const message of chat.settling.get(timeline.id) ?? []) own(message, "sent");
    const hopeless = timeline.have > 0 && !chat.mayWrite(timeline);
    for (const message of chat.outbox.failed(timeline.id)) own(message, "failed");
    for (const message of chat.outbox.waiting(timeline.id)) own({ ...message, code: hopeless ? "waits" : "" }, hopeless ? "failed" : "waiting");
    return items;
  }

  element(item, timeline) {
    if (item.note) {
      const element = make("li", item.day ? "note day" : "note", item.note);
      element.title = full.format(date(item.at));
      return element;
    }
    const element = make("li", item.mine ? "mine" : "");
    element.classList.toggle("follows", item.follows);
    element.dataset.status = item.status;
    if (!item.mine && timeline.kind !== "direct" && !item.follows) {
      const who = make("span", "who", item.name);
      who.style.setProperty("--hue", String(parseInt(item.user.slice(-4), 16) % 360));
      element.append(who);
    }
    const body = make("span", item.code ? "body code" : "body", item.body);
    body.dir = "auto";
    const meta = make("span", "meta");
    const time = make("time", "", clock.format(date(item.at)));
    time.dateTime = date(item.at).toISOString();
    time.title = full.format(date(item.at));
    meta.append(time);
    if (item.mine) {
      meta.append(" ", tick(item.status));
    }
    element.append(body, meta);
    if (item.status === "failed") element.append(this.failedRow(item));
    return element;
  }

  failedRow(item) {
    const row = make("div", "failed-row");
    row.append(make("span", "", `Not sent. ${FAILED[item.why] ?? ""}`));
    for (const [action, words] of [["again", "Try again"], ["discard", "Discard"]]) {
      if (action === "again" && item.why === "waits") continue;
      const button = make("button", "quiet small", words);
      button.type = "button";
      Object.assign(button.dataset, { action, id: item.id });
      row.append(button);
    }
    return row;
  }

  // A change of members as a sentence.
  membersText(event, timeline) {
    const { chat } = this;
    const whom = (user) => (user === chat.me ? "you" : chat.people.name(user));
    const who = (user) => (user === chat.me ? "You" : chat.people.name(user));
    const list = (users, name) => users.slice(0, 5).map(name).join(", ") + (users.length > 5 ? ` and ${users.length - 5} more` : "");
    if (event.seq === 1 && timeline.kind === "direct") return "This is the beginning of your conversation.";
    const changes = event.changes ?? [];
    const others = changes.map((c) => c.user).filter((user) => user !== event.user);
    const actor = event.user && event.user !== NONE ? who(event.user) : "";
    if (event.seq === 1) return `${actor || "Somebody"} created “${event.title || timeline.title}”${others.length ? ` with ${list(others, whom)}` : ""}`;
    const roles = new Set(changes.map((c) => c.role ?? "none"));
    const joined = roles.size === 1 && (roles.has("member") || roles.has("reader"));
    if (!others.length) return `${actor} ${roles.has("none") ? "left" : joined ? "joined" : `is now ${[...roles].join(", ")}`}`;
    if (roles.size === 1 && roles.has("none")) return actor ? `${actor} removed ${list(others, whom)}` : `${list(others, who)} left`;
    if (joined) return actor ? `${actor} added ${list(others, whom)}` : `${list(others, who)} joined`;
    return `${list(others, who)}: now ${[...roles].join(", ")}`;
  }
}

function bodyText(event) {
  if (event.kind === "text") return event.body ?? "";
  if (event.kind === "json") return JSON.stringify(event.body ?? null, null, 1);
  return "A message that this page cannot show.";
}

// Puts the children in this order, and touches only those that aren't.
function replace(parent, children) {
  const keep = new Set(children);
  for (const child of [...parent.children]) if (!keep.has(child)) child.remove();
  let at = parent.firstElementChild;
  for (const child of children) {
    if (child === at) at = at.nextElementSibling;
    else parent.insertBefore(child, at);
  }
}
