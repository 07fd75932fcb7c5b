// What the page knows, and what it says to the server: conversations, people, the outbox, and
// what each update changes. The page draws from here; it is told by `changed()` when to.

import { Connection } from "./connection.js";
import { Outbox } from "./outbox.js";
import { People } from "./people.js";
import { Timeline, mayWrite } from "./timeline.js";

// The newest events of a conversation to begin with, and of each further page.
const PAGE = 50;
const REPAIR_PAGE = 200;
// A missing event may be on its way; after this it is asked for.
const REPAIR_AFTER_MS = 300;
// Behind more than this, a sync brings the newest page first.
const REPAIR_MAX = 1_000;
const ANSWER_WITHIN_MS = 15_000;
const RETRY_MS = 2_000;
const RETRY_LAST_MS = 30_000;
const FLUSH_EVERY_MS = 1_000;
const READ_FLUSH_MS = 50;
const TYPING_EVERY_MS = 3_000;
const TYPING_FOR_MS = 6_000;
const CURSORS_MAX = 4_096;
// Sends on their way without an answer; the rest waits in the outbox.
const BURST = 20;

export class Chat {
  constructor({ api, storage, changed, ended }) {
    const { user, name } = api.session;
    Object.assign(this, {
      api, storage, changed, ended, me: user, name, timelines: new Map(), settling: new Map(), typing: new Map(), modes: new Map(),
      openId: null, expected: null, epoch: 0, limits: {}, down: false, syncing: null, syncAgain: false, syncTries: 0, asked: new Map(), repairs: new Map(),
      moved: new Set(), read: new Set(), typedAt: 0, synced: false, allowance: BURST, allowanceAt: performance.now(),
    });
    this.outbox = new Outbox(storage, `tidings.outbox.${user}`);
    this.people = new People(api, changed);
    this.people.names.set(user, name);
    this.receiptsKey = `tidings.receipts.${user}`;
    this.savedReceipts = JSON.parse(storage.getItem(this.receiptsKey) ?? "{}");
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    this.connection = new Connection({
      url: `${scheme}//${location.host}/v1/ws?user=${user}`, device: "Web page", token: (fresh) => api.token(fresh),
      on: {
        ready: (ready, hello) => this.ready(ready, hello),
        update: (update) => this.update(update),
        down: () => this.lost(),
        ended: (code) => this.stop(code),
      },
    });
  }

  start() {
    this.ticker = setInterval(() => this.tick(), 250);
    this.connection.start();
  }

  stop(code) {
    clearInterval(this.ticker);
    for (const repair of this.repairs.values()) clearTimeout(repair.timer);
    clearTimeout(this.readTimer);
    this.connection.stop();
    this.lost();
    if (code) this.ended(code);
  }

  get online() {
    return this.connection.ready;
  }

  ready(ready, hello) {
    if (ready.user !== this.me) return this.stop(4002);
    this.down = false;
    this.limits = hello?.limits ?? {};
    if (this.epoch && ready.epoch !== this.epoch) this.forget();
    this.epoch = ready.epoch;
    this.showPresence();
    this.people.watched = "";
    this.sync();
    this.loadMembers();
    this.pump();
    this.changed();
  }

  lost() {
    this.down = true;
    Object.assign(this, { syncing: null, syncAgain: false });
    this.asked.clear();
    this.typing.clear();
    this.modes.clear();
    this.outbox.down();
    this.people.presence.clear();
    this.changed();
  }

  // The server's log is another one: everything is read anew.
  forget() {
    this.timelines.clear();
    this.settling.clear();
    this.savedReceipts = {};
    this.outbox.reset();
  }

  // Asks for what is missing behind the cursors; one at a time, once more if wanted meanwhile.
  sync() {
    if (this.syncing) {
      this.syncAgain = true;
      return;
    }
    const known = [...this.timelines.values()].filter((t) => t.have > 0 && t.role !== "none").slice(0, CURSORS_MAX);
    const ref = this.connection.ref();
    const cursors = known.map((t) => ({ conversation: t.id, seq: t.have }));
    if (this.connection.send([{ type: "sync", ref, epoch: this.epoch, cursors, page: PAGE }])) this.syncing = { ref, at: performance.now() };
  }

  syncLater() {
    clearTimeout(this.syncTimer);
    this.syncTimer = setTimeout(() => this.sync(), Math.min(RETRY_MS * 2 ** this.syncTries++, RETRY_LAST_MS));
  }

  update(update) {
    const took = this[`on_${update.type}`];
    if (took) took.call(this, update);
    this.changed();
  }

  on_sync_page(page) {
    const timeline = this.timelines.get(page.conversation) ?? this.begin(page.conversation);
    if ((page.read ?? 0) < timeline.read) this.read.add(timeline.id);
    if (timeline.page(page)) this.moved.add(timeline.id);
    for (const event of page.events ?? []) this.examine(event);
    this.learned(timeline);
  }

  begin(id) {
    const timeline = new Timeline(id);
    for (const [user, [delivered, read]] of Object.entries(this.savedReceipts[id] ?? {})) timeline.receipt(user, delivered, read);
    this.timelines.set(id, timeline);
    this.loadMembers();
    return timeline;
  }

  // The user's grant and the people of a conversation may be others now.
  learned(timeline) {
    this.outbox.learn(timeline.id, timeline.grant);
    this.settle(timeline);
    this.people.need([...timeline.members.keys(), ...timeline.events.map((e) => e.user)]);
    this.pump();
  }

  on_sync_done(done) {
    if (done.ref && done.ref !== this.syncing?.ref) return;
    this.syncing = null;
    if (done.reset) {
      this.forget();
      this.epoch = done.epoch;
      return this.sync();
    }
    for (const timeline of this.timelines.values()) {
      if (timeline.missing) this.repair(timeline.id);
      this.outbox.expired(timeline.id, Date.now(), timeline.head);
      this.lookUp(timeline.id);
    }
    if (!done.complete || this.syncAgain) {
      this.syncAgain = false;
      return this.syncLater();
    }
    this.syncTries = 0;
    this.synced = true;
  }

  on_lagging() {
    this.syncing = null;
    this.sync();
  }

  on_message(event) {
    this.event(event);
  }

  on_members(event) {
    this.event(event);
  }

  event(event) {
    const timeline = this.timelines.get(event.conversation);
    // A conversation not known yet: a sync tells all about it.
    if (!timeline) return this.sync();
    if (event.type === "members") timeline.changeSelf(event, this.me);
    // A duplicate is dropped, but confirmed: the server may not know that it is here.
    if (timeline.live(event) === "hole") this.repair(timeline.id);
    else this.moved.add(timeline.id);
    this.typing.get(timeline.id)?.delete(event.user);
    this.examine(event);
    if (event.type === "members") return this.learned(timeline);
    this.people.need([event.user]);
    this.settle(timeline);
    this.saveReceipts();
  }

  // What an event says of this tab's own outbox.
  examine(event) {
    if (event.type !== "message" || event.user !== this.me || this.outbox.seen(event)) return;
    const { conversation, sender, grant, counter, id, seq, ts } = event;
    this.answered({ conversation, sender, grant, counter, id, seq, ts, head: seq, status: "sent" }, false);
  }

  on_ack(ack) {
    this.answered(ack, true);
  }

  answered(ack, stands) {
    const { sent, lookup } = this.outbox.answered(ack, Date.now());
    const timeline = this.timelines.get(ack.conversation);
    if (sent.length && timeline) {
      // Until its event is here a sent message is shown where it was.
      this.settling.set(ack.conversation, [...(this.settling.get(ack.conversation) ?? []), ...sent]);
      // The server sends a session its own message by the ack alone.
      const { id, body, seq, ts, counter } = sent.at(-1);
      if (stands && seq && id === ack.id) this.event({ type: "message", conversation: ack.conversation, seq, ts, user: this.me, sender: ack.sender, grant: ack.grant, counter, id, kind: "text", body });
    }
    if (timeline && ack.head > timeline.head) timeline.head = ack.head;
    if (timeline?.missing) this.repair(timeline.id);
    if (ack.status === "over") this.sync();
    if (lookup) this.lookUp(ack.conversation);
    this.pump();
  }

  settle(timeline) {
    const left = this.settling.get(timeline.id);
    if (!left) return;
    const ids = new Set(timeline.events.map((e) => e.id));
    const rest = left.filter((m) => !ids.has(m.id));
    if (rest.length) this.settling.set(timeline.id, rest);
    else this.settling.delete(timeline.id);
  }

  on_error(error) {
    const asked = this.asked.get(error.ref);
    if (asked) {
      this.asked.delete(error.ref);
      if (asked.why === "lookup") setTimeout(() => this.lookUp(asked.conversation), Math.max(error.retry_after_ms ?? 0, RETRY_MS));
      if (asked.why === "repair") this.repair(asked.conversation, Math.max(error.retry_after_ms ?? 0, RETRY_MS));
      return;
    }
    if (error.counter) {
      const then = this.outbox.refused(error, Date.now());
      if (then === "sync") this.sync();
      if (then === "token") this.connection.authenticate();
      return;
    }
    // Errors of a sync about one conversation are followed by `sync_done`; others end it.
    if (this.syncing && error.ref === this.syncing.ref && !error.conversation) {
      this.syncing = null;
      this.syncLater();
    }
  }

  // The way of a hole: wait, ask, and ask again until it is filled.
  repair(id, after = REPAIR_AFTER_MS) {
    if (this.repairs.has(id)) return;
    const timer = setTimeout(() => {
      this.repairs.delete(id);
      const timeline = this.timelines.get(id);
      if (!timeline?.missing || timeline.role === "none" || !this.online) return;
      if (timeline.head - timeline.have > REPAIR_MAX) return this.sync();
      if (!this.syncing) this.ask("repair", { conversation: id, after: timeline.have, limit: REPAIR_PAGE });
    }, after);
    this.repairs.set(id, { timer });
  }

  // Older events, on demand.
  older(id) {
    const timeline = this.timelines.get(id);
    if (timeline?.hasOlder) this.ask("older", { conversation: id, before: timeline.low, limit: PAGE });
  }

  loadingOlder(id) {
    return [...this.asked.values()].some((a) => a.conversation === id && a.why === "older");
  }

  // What a copied outbox may have sent already, by id.
  lookUp(id) {
    const lookup = this.outbox.lane(id).lookup;
    if (!lookup) return;
    if (lookup.from > lookup.to) {
      this.outbox.fresh(id);
      return this.pump();
    }
    this.ask("lookup", { conversation: id, after: lookup.from - 1, limit: REPAIR_PAGE });
  }

  // One question of a kind and conversation at a time.
  ask(why, history) {
    for (const asked of this.asked.values()) if (asked.why === why && asked.conversation === history.conversation) return;
    const ref = this.connection.ref();
    if (this.connection.send([{ type: "history", ref, ...history }])) this.asked.set(ref, { why, conversation: history.conversation, at: performance.now() });
  }

  on_history_page(page) {
    const asked = this.asked.get(page.ref);
    const timeline = this.timelines.get(page.conversation);
    if (!asked || !timeline) return;
    this.asked.delete(page.ref);
    const had = timeline.have;
    timeline.history(page);
    for (const event of page.events ?? []) this.examine(event);
    this.people.need((page.events ?? []).flatMap((e) => [e.user, ...(e.changes ?? []).map((c) => c.user)]));
    this.settle(timeline);
    if (asked.why === "lookup") {
      const lookup = this.outbox.lane(timeline.id).lookup;
      if (lookup) {
        const ends = !page.to || page.to < lookup.from;
        lookup.from = ends ? lookup.to + 1 : page.to + 1;
        this.outbox.save();
        this.lookUp(timeline.id);
      }
    }
    if (timeline.have > had) this.moved.add(timeline.id);
    if (asked.why === "repair" && timeline.missing) this.repair(timeline.id, timeline.have > had ? 0 : RETRY_MS);
  }

  on_heads(heads) {
    for (const { conversation, seq } of heads.heads ?? []) {
      const timeline = this.timelines.get(conversation);
      if (!timeline) this.sync();
      else timeline.head = Math.max(timeline.head, seq);
      if (timeline?.missing) this.repair(conversation);
    }
  }

  on_receipts(update) {
    const timeline = this.timelines.get(update.conversation);
    if (!timeline) return;
    for (const { user, delivered, read } of update.receipts ?? []) {
      if (user === this.me) timeline.read = Math.max(timeline.read, read ?? 0);
      else timeline.receipt(user, delivered, read);
    }
    this.saveReceipts();
  }

  // Receipts come once; a reload shall not take the ticks away.
  saveReceipts() {
    const saved = {};
    for (const timeline of [...this.timelines.values()].slice(0, 200)) {
      if (timeline.receipts.size) saved[timeline.id] = Object.fromEntries([...timeline.receipts].slice(0, 20).map(([user, r]) => [user, [r.delivered, r.read]]));
    }
    try {
      this.storage.setItem(this.receiptsKey, JSON.stringify(saved));
    } catch {
      // No room: the outbox needs it more.
    }
  }

  on_typing({ conversation, user, on }) {
    if (user === this.me) return;
    const who = this.typing.get(conversation) ?? new Map();
    if (on) who.set(user, performance.now() + TYPING_FOR_MS);
    else who.delete(user);
    this.typing.set(conversation, who);
    this.people.need([user]);
  }

  // A feature is less than usual from now on, or is itself again.
  on_mode({ feature, state }) {
    this.modes.set(feature, state);
    if (state === "normal") return;
    if (feature === "typing") this.typing.clear();
    if (feature === "presence") this.people.presence.clear();
  }

  on_presence(update) {
    for (const { user, state, last_seen } of update.users ?? []) this.people.presence.set(user, { state: state ?? "offline", lastSeen: last_seen ?? 0 });
  }

  showPresence() {
    this.connection.send([{ type: "presence", state: document.visibilityState === "visible" ? "online" : "away" }]);
  }

  // Writes a message; false when the outbox has no room for it.
  write(id, body) {
    this.typedAt = 0;
    if (!this.outbox.add(id, body, Date.now() * 1000)) return false;
    this.pump();
    this.changed();
    return true;
  }

  again(id, message) {
    this.outbox.discard(id, message.id);
    this.write(id, message.body);
  }

  discard(id, message) {
    this.outbox.discard(id, message.id);
    this.changed();
  }

  type(id, on) {
    const now = performance.now();
    if (on ? this.typedAt && now - this.typedAt < TYPING_EVERY_MS : !this.typedAt) return;
    if (this.connection.send([{ type: "typing", conversation: id, on }])) this.typedAt = on ? now : 0;
  }

  // The user looks at a conversation's end: all of it is read.
  look(id) {
    const timeline = this.timelines.get(id);
    if (!timeline || timeline.have <= timeline.read) return;
    timeline.read = timeline.have;
    this.read.add(id);
    // Somebody may be waiting for the mark.
    this.readTimer ??= setTimeout(() => {
      this.readTimer = null;
      if (this.online) this.flush(performance.now());
    }, READ_FLUSH_MS);
    this.changed();
  }

  // Sends what may go out, no faster than the server takes it.
  pump() {
    if (!this.online) return;
    const rate = this.limits.sends_per_second || BURST;
    const now = performance.now();
    this.allowance = Math.min(rate, this.allowance + ((now - this.allowanceAt) / 1000) * rate);
    this.allowanceAt = now;
    for (const id of this.outbox.conversations()) {
      const commands = this.outbox.take(id, Date.now(), Math.floor(this.allowance));
      if (!commands.length) continue;
      this.allowance -= commands.length;
      this.connection.send(commands.map((c) => ({ ref: this.connection.ref(), ...c })));
    }
  }

  tick() {
    const now = performance.now();
    for (const who of this.typing.values()) {
      for (const [user, until] of who) {
        if (until > now) continue;
        who.delete(user);
        this.changed();
      }
    }
    if (!this.online) return;
    this.outbox.tick(Date.now());
    this.pump();
    for (const [ref, asked] of this.asked) {
      if (now - asked.at <= ANSWER_WITHIN_MS) continue;
      this.asked.delete(ref);
      if (asked.why === "lookup") this.lookUp(asked.conversation);
      if (asked.why === "repair") this.repair(asked.conversation);
    }
    if (this.syncing && now - this.syncing.at > ANSWER_WITHIN_MS * 2) {
      this.syncing = null;
      this.syncLater();
    }
    if (now - (this.flushedAt ?? 0) >= FLUSH_EVERY_MS) this.flush(now);
  }

  // Cursors that moved, all in one frame.
  flush(now) {
    this.flushedAt = now;
    const at = (id) => this.timelines.get(id);
    const commands = [
      ...[...this.moved].filter((id) => at(id)?.have).map((id) => ({ type: "delivered", conversation: id, seq: at(id).have })),
      ...[...this.read].filter((id) => at(id)?.read).map((id) => ({ type: "read", conversation: id, seq: at(id).read })),
    ];
    const watch = this.people.watch([...this.timelines.values()].flatMap((t) => [...t.members.keys()]), this.me);
    if (watch) commands.push(watch);
    if (commands.length && this.connection.send(commands)) {
      this.moved.clear();
      this.read.clear();
    }
  }

  // Who the members are; events told of changes only.
  loadMembers() {
    clearTimeout(this.membersTimer);
    this.membersTimer = setTimeout(async () => {
      try {
        for await (const conversation of this.people.conversations()) {
          const timeline = this.timelines.get(conversation.id);
          if (!timeline) continue;
          if (conversation.title) timeline.title = conversation.title;
          for (const { user, role } of conversation.members ?? []) if (!timeline.members.has(user)) timeline.members.set(user, role);
        }
      } catch {
        // The chat works without; the next connection asks again.
      }
      this.changed();
    }, 100);
  }

  // Opens a direct conversation with the user of exactly this name.
  async chatWith(name) {
    const user = await this.people.find(name);
    if (user.id === this.me) throw new Error("That is you.");
    const { id } = await this.api.post("/v1/conversations", { kind: "direct", user: user.id });
    return this.created(id);
  }

  async createGroup(title) {
    const { id } = await this.api.post("/v1/conversations", { kind: "group", title, members: [] });
    return this.created(id);
  }

  created(id) {
    this.expected = id;
    if (!this.timelines.has(id)) this.sync();
    return id;
  }

  async addMember(id, name) {
    const user = await this.people.find(name);
    await this.api.post(`/v1/conversations/${id}/members`, { users: [user.id], role: "member" });
  }

  async leave(id) {
    await this.api.post(`/v1/conversations/${id}/leave`, {});
  }

  // The conversations, the one with the newest event first.
  list() {
    const when = (t) => Math.max(t.last()?.ts ?? 0, this.outbox.waiting(t.id).at(-1)?.at ?? 0);
    return [...this.timelines.values()].filter((t) => t.role !== "none" || t.id === this.openId).sort((a, b) => when(b) - when(a) || (a.id < b.id ? -1 : 1));
  }

  title(timeline) {
    if (timeline.kind !== "direct") return timeline.title || "Group";
    const other = timeline.otherUser(this.me);
    return other ? this.people.name(other) : "…";
  }

  mayWrite(timeline) {
    return mayWrite(timeline.role);
  }

  waitingCount() {
    return this.outbox.conversations().reduce((sum, id) => sum + this.outbox.waiting(id).length, 0);
  }
}
