// What this page holds of one conversation: an unbroken run of events `low` … `have`, the newest
// first to come; older ones are asked for when somebody scrolls up. The seq decides everything:
// what is dropped, what is next, and where a hole is (docs/protocol.md, "Receiving").

// Events kept aside while those before them are missing; further ones are asked for again.
const ASIDE_MAX = 500;

export class Timeline {
  constructor(id) {
    Object.assign(this, {
      id, kind: "group", title: "", role: "none", grant: 0, visibleFrom: 1, head: 0, low: 1, have: 0, read: 0,
      // As of which seq `role` and `grant` are known: older news is ignored.
      asOf: 0, events: [], aside: new Map(), receipts: new Map(), members: new Map(),
    });
  }

  // A page of a sync; true when something new is in it. Conversations far behind start anew at
  // the newest page: what was held before is history like any other.
  page(page) {
    Object.assign(this, { kind: page.conversation_kind, title: page.title ?? this.title, visibleFrom: page.visible_from || 1 });
    if (page.head >= this.asOf) Object.assign(this, { role: page.role ?? "none", grant: page.grant ?? 0, asOf: page.head });
    this.head = Math.max(this.head, page.head);
    this.read = Math.max(this.read, page.read ?? 0);
    const events = page.events ?? [];
    if (this.have === 0 || page.missing_from) {
      const first = events[0]?.seq ?? page.head + 1;
      if (this.have === 0 || first > this.have + 1) {
        this.events = [];
        this.low = page.missing_from ? first : this.visibleFrom;
        this.have = first - 1;
      }
    }
    const before = this.have;
    // A page has no hole: a seq that isn't in it is hidden from this user.
    for (const event of events) if (event.seq > this.have) this.append(event);
    this.goOn();
    return this.have > before;
  }

  // An event that was pushed: "old", "next", or "hole" when those before it are missing.
  live(event) {
    this.head = Math.max(this.head, event.seq);
    if (event.seq <= this.have) return "old";
    if (event.seq > this.have + 1) {
      if (this.aside.size < ASIDE_MAX) this.aside.set(event.seq, event);
      return "hole";
    }
    this.append(event);
    this.goOn();
    return "next";
  }

  // An answer to `history`. It covers `from` … `to`; seqs without an event are hidden.
  history(page) {
    this.head = Math.max(this.head, page.head ?? 0);
    const events = page.events ?? [];
    if (!page.to || page.to < page.from) {
      if (this.low > this.visibleFrom && page.to < this.low && !events.length) this.low = this.visibleFrom;
      return;
    }
    if (page.from <= this.have + 1 && page.to > this.have) {
      for (const event of events) if (event.seq > this.have) this.append(event);
      this.have = Math.max(this.have, page.to);
      this.goOn();
    } else if (page.from < this.low && page.to >= this.low - 1) {
      this.events = [...events.filter((e) => e.seq < this.low), ...this.events];
      this.low = page.from;
    }
  }

  append(event) {
    this.events.push(event);
    this.have = event.seq;
    this.changeMembers(event);
  }

  goOn() {
    for (const seq of this.aside.keys()) if (seq <= this.have) this.aside.delete(seq);
    for (let next; (next = this.aside.get(this.have + 1)); this.aside.delete(next.seq)) this.append(next);
  }

  changeMembers(event) {
    if (event.type !== "members") return;
    if (event.title && event.seq === 1) this.title = event.title;
    for (const change of event.changes ?? []) {
      if ((change.role ?? "none") === "none") this.members.delete(change.user);
      else this.members.set(change.user, change.role);
    }
  }

  // What a change of members says of this client's own user: a start, or a change of kind, makes
  // its seq the new grant; a change of role alone keeps the grant.
  changeSelf(event, me) {
    if (event.seq <= this.asOf) return;
    for (const change of event.changes ?? []) {
      if (change.user !== me) continue;
      const role = change.role ?? "none";
      const writes = mayWrite(role);
      const grant = !writes ? 0 : change.ended || !this.grant ? event.seq : this.grant;
      Object.assign(this, { role, grant, asOf: event.seq });
    }
  }

  get missing() {
    return this.head > this.have;
  }

  get hasOlder() {
    return this.have > 0 && this.low > this.visibleFrom;
  }

  receipt(user, delivered, read) {
    const known = this.receipts.get(user) ?? { delivered: 0, read: 0 };
    const now = { delivered: Math.max(known.delivered, delivered ?? 0, read ?? 0), read: Math.max(known.read, read ?? 0) };
    this.receipts.set(user, now);
    return now.delivered > known.delivered || now.read > known.read;
  }

  // "read" or "delivered" when every other member has come so far, else "sent".
  reached(seq, me) {
    const others = new Set([...this.members.keys(), ...this.receipts.keys()]);
    others.delete(me);
    for (const user of others) if (this.members.size && !this.members.has(user)) others.delete(user);
    if (!others.size) return "sent";
    const least = (what) => Math.min(...[...others].map((u) => this.receipts.get(u)?.[what] ?? 0));
    return least("read") >= seq ? "read" : least("delivered") >= seq ? "delivered" : "sent";
  }

  // Messages of others that aren't read; `more` when older ones may be too.
  unread(me) {
    const count = this.events.filter((e) => e.type === "message" && e.kind !== "empty" && e.user !== me && e.seq > this.read).length;
    return { count, more: this.low > this.read + 1 && this.low > this.visibleFrom };
  }

  last() {
    return this.events.findLast((e) => e.type === "members" || e.kind !== "empty");
  }

  otherUser(me) {
    if (this.kind !== "direct") return null;
    return [...this.members.keys(), ...this.events.map((e) => e.user)].find((u) => u !== me) ?? null;
  }
}

export function mayWrite(role) {
  return role === "member" || role === "admin" || role === "owner";
}
