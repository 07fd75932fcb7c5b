// What this tab still has to send, kept in the tab's own storage, so that a lost connection or a
// reload loses nothing and sends nothing twice. The rules are those of docs/protocol.md, "Sending".
//
// A lane is the outbox of one conversation. Its queue holds the messages that aren't decided:
// the first `numbered` of them have the counters acked + 1 … acked + numbered under (sender,
// grant), the others wait for one. The previous id isn't stored: it is the id standing before it,
// so replacing a message changes it and nothing else can.

export const NONE = "0".repeat(16);

// More than this waiting in one conversation isn't taken: the tab's storage is small.
export const WAITING_MAX = 500;
// No answer to a send for this long on a live connection: it goes out again, later each time.
const RESEND_FIRST_MS = 15_000;
const RESEND_LAST_MS = 120_000;
// The server counts sender ids for 400 days; before that a fresh one is taken.
const SENDER_AGE_MAX_MS = 365 * 86_400_000;
const FORBIDDEN_PAUSE_MAX_MS = 300_000;
const EMPTY_REFUSED_PAUSE_MS = 30_000;

// Codes that another try of the same command can't change.
const NEVER = new Set(["bad_request", "unknown_type", "forbidden", "too_long", "refused", "bad_cursor"]);
const LATER = new Set(["rate_limited", "unavailable", "storage_full", "history_delayed", "internal"]);

export function random64() {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  const hex = [...bytes].map((b) => b.toString(16).padStart(2, "0")).join("");
  return hex === NONE ? random64() : hex;
}

export class Outbox {
  // `storage` is a Storage, `key` the entry of the user that is signed in.
  constructor(storage, key) {
    this.storage = storage;
    this.key = key;
    this.state = JSON.parse(storage.getItem(key) ?? "null") ?? { sender: random64(), lanes: {} };
    this.flows = new Map();
    // Grants as the server last told them; a message is numbered only under the present one.
    this.grants = new Map();
  }

  save() {
    this.storage.setItem(this.key, JSON.stringify(this.state));
  }

  lane(conversation) {
    return (this.state.lanes[conversation] ??= {
      sender: NONE, grant: 0, over: false, acked: 0, ackedId: NONE, ackedSeq: 0, answeredAt: 0,
      numbered: 0, queue: [], failed: [], lookup: null,
    });
  }

  // What a lane does on the present connection; nothing of it needs to be kept.
  flow(conversation) {
    if (!this.flows.has(conversation)) {
      this.flows.set(conversation, { next: 1, pausedUntil: 0, refusals: 0, gapAt: -1, forkAt: "", resendAt: 0, resendWait: RESEND_FIRST_MS });
    }
    return this.flows.get(conversation);
  }

  // The connection is gone: everything unacknowledged goes out again on the next one.
  down() {
    this.flows.clear();
  }

  conversations() {
    return Object.keys(this.state.lanes);
  }

  // What is shown as waiting and as failed, in the order it was written.
  waiting(conversation) {
    return this.state.lanes[conversation]?.queue.filter((m) => !m.refused) ?? [];
  }

  failed(conversation) {
    return this.state.lanes[conversation]?.failed ?? [];
  }

  // Takes a message; null when there is no room for it. It is stored before this returns.
  add(conversation, body, at) {
    const lane = this.lane(conversation);
    if (lane.queue.length >= WAITING_MAX) return null;
    const message = { id: random64(), body, at };
    lane.queue.push(message);
    try {
      this.save();
    } catch {
      lane.queue.pop(); // The storage is full: what it held before is still there.
      return null;
    }
    return message;
  }

  // The grant under which the user writes here now; 0: only reads.
  learn(conversation, grant) {
    this.grants.set(conversation, grant);
    const lane = this.state.lanes[conversation];
    if (lane?.over && grant > lane.grant) this.flow(conversation).next = 1;
  }

  // The commands that may go out now, at most `room`; numbers are given, and stored, before.
  take(conversation, now, room) {
    const lane = this.state.lanes[conversation];
    if (!lane?.queue.length) return [];
    const flow = this.flow(conversation);
    if (lane.lookup || flow.pausedUntil > now) return [];
    const grant = this.grants.get(conversation) ?? 0;
    if (lane.numbered === 0 && grant > lane.grant) {
      // The old grant's messages are all decided: counting begins anew.
      Object.assign(lane, { sender: this.state.sender, grant, over: false, acked: 0, ackedId: NONE, ackedSeq: 0, answeredAt: now });
      Object.assign(flow, { next: 1, gapAt: -1, forkAt: "" });
    }
    const next = Math.max(flow.next, lane.acked + 1);
    const unsent = lane.acked + lane.numbered + 1 - next;
    if (!lane.over && lane.grant !== 0 && lane.grant === grant) {
      const fresh = Math.max(0, Math.min(lane.queue.length - lane.numbered, room - unsent));
      if (fresh > 0) {
        lane.numbered += fresh;
        this.save();
      }
    }
    const count = Math.max(0, Math.min(lane.acked + lane.numbered + 1 - next, room));
    const commands = [];
    for (let counter = next; counter < next + count; counter++) commands.push(this.command(conversation, counter));
    flow.next = next + count;
    if (count > 0 && !flow.resendAt) flow.resendAt = now + flow.resendWait;
    return commands;
  }

  command(conversation, counter) {
    const lane = this.lane(conversation);
    const place = counter - lane.acked - 1;
    const message = lane.queue[place];
    const before = place > 0 ? currentId(lane.queue[place - 1]) : lane.ackedId;
    const command = { type: "send", conversation, sender: lane.sender, grant: lane.grant, counter, id: currentId(message) };
    if (before !== NONE) command.previous = before;
    return message.refused ? { ...command, kind: "empty" } : { ...command, kind: "text", body: message.body };
  }

  // Takes the router's answer. `sent` are the messages it decides, the last one with its seq and
  // time; `lookup`: the outbox is a copy, and the history has to be read before it goes on.
  answered(ack, now) {
    const nothing = { sent: [], lookup: null };
    const lane = this.state.lanes[ack.conversation];
    if (!lane || lane.grant === 0 || lane.lookup) return nothing;
    if (ack.sender !== lane.sender || ack.grant !== lane.grant) return nothing;
    if (ack.status === "stale") return this.lookUp(ack.conversation, ack.head);
    const n = ack.counter ?? 0;
    let sent = [];
    if (n > lane.acked) {
      const message = lane.queue[n - lane.acked - 1];
      const numbered = n - lane.acked <= lane.numbered;
      if (!numbered || (message.id !== ack.id && message.refused?.id !== ack.id)) return this.lookUp(ack.conversation, ack.head);
      sent = this.accept(lane, ack, now);
    } else if (n === lane.acked) {
      if (n > 0 && ack.id !== lane.ackedId) return this.lookUp(ack.conversation, ack.head);
    } else if (ack.status !== "over") {
      return nothing;
    }
    const flow = this.flow(ack.conversation);
    const flying = flow.next <= lane.acked + lane.numbered || lane.numbered > 0;
    Object.assign(flow, { resendWait: RESEND_FIRST_MS, resendAt: flying ? now + RESEND_FIRST_MS : 0, pausedUntil: n > 0 ? 0 : flow.pausedUntil, refusals: 0 });
    if (ack.status === "gap" && flow.gapAt !== n) {
      // Many answers tell of one gap; what is missing goes out once.
      Object.assign(flow, { gapAt: n, next: n + 1 });
    } else if (ack.status === "fork" && flow.forkAt !== `${n} ${ack.id}`) {
      Object.assign(flow, { forkAt: `${n} ${ack.id}`, next: n + 1 });
    } else if (ack.status === "over" && !lane.over) {
      this.end(ack.conversation, lane);
    }
    this.save();
    return { sent, lookup: null };
  }

  accept(lane, ack, now) {
    const taken = lane.queue.splice(0, ack.counter - lane.acked);
    const last = taken.at(-1);
    const sent = [];
    for (const message of taken) {
      // A replaced message was accepted only if the answer names its own id.
      if (message.refused && !(message === last && ack.id === message.id)) this.fail(lane, message, message.refused.code);
      else sent.push(message === last ? { ...message, counter: ack.counter, seq: ack.seq, ts: ack.ts } : message);
    }
    Object.assign(lane, {
      numbered: lane.numbered - taken.length, acked: ack.counter, ackedId: ack.id,
      ackedSeq: Math.max(lane.ackedSeq, ack.seq ?? 0), answeredAt: now,
    });
    return sent;
  }

  // The grant has ended: what it didn't accept waits for the next one.
  end(conversation, lane) {
    for (const message of lane.queue.slice(0, lane.numbered)) if (message.refused) this.fail(lane, message, message.refused.code);
    lane.queue = lane.queue.filter((m, place) => place >= lane.numbered || !m.refused);
    Object.assign(lane, { over: true, numbered: 0 });
    this.flow(conversation).resendAt = 0;
    if ((this.grants.get(conversation) ?? 0) <= lane.grant) this.grants.set(conversation, 0);
  }

  fail(lane, message, code) {
    lane.failed.push({ id: message.id, body: message.body, at: message.at, code });
    if (lane.failed.length > WAITING_MAX) lane.failed.shift();
  }

  // Nothing accepted and still undecided has a seq at or below `from` − 1.
  lookUp(conversation, head) {
    const lane = this.lane(conversation);
    lane.lookup = { from: Math.max(lane.ackedSeq, lane.grant) + 1, to: head };
    this.save();
    return { sent: [], lookup: lane.lookup };
  }

  // A sender id that old is left, too, once the history up to `head` was read.
  expired(conversation, now, head) {
    const lane = this.state.lanes[conversation];
    if (!lane?.queue.length || lane.grant === 0 || lane.lookup || now - lane.answeredAt <= SENDER_AGE_MAX_MS) return null;
    return this.lookUp(conversation, head).lookup;
  }

  // An event of this user in the history: what waits or failed here under its id was sent.
  seen(event) {
    const lane = this.state.lanes[event.conversation];
    if (!lane) return false;
    const failed = lane.failed.findIndex((m) => m.id === event.id);
    if (failed >= 0) lane.failed.splice(failed, 1);
    const place = lane.queue.findIndex((m) => m.id === event.id);
    const elsewhere = place >= 0 && (lane.lookup || place >= lane.numbered);
    if (elsewhere) {
      lane.queue.splice(place, 1);
      if (place < lane.numbered) lane.numbered--;
    }
    if (failed >= 0 || elsewhere) this.save();
    return failed >= 0 || Boolean(elsewhere);
  }

  // The history was read: the rest goes out under a fresh sender id.
  fresh(conversation) {
    const lane = this.lane(conversation);
    for (const message of lane.queue) if (message.refused) this.fail(lane, message, message.refused.code);
    lane.queue = lane.queue.filter((m) => !m.refused);
    this.state.sender = random64();
    Object.assign(lane, { sender: NONE, grant: 0, over: false, acked: 0, ackedId: NONE, ackedSeq: 0, numbered: 0, lookup: null });
    this.flows.delete(conversation);
    this.save();
  }

  // The server's log is another one: counters mean nothing any more.
  reset() {
    for (const conversation of this.conversations()) this.fresh(conversation);
    this.grants.clear();
  }

  // A gateway refused a send. "sync": the user may not write here, and a sync tells whether so.
  refused(error, now) {
    const lane = this.state.lanes[error.conversation];
    const place = lane ? (error.counter ?? 0) - lane.acked - 1 : -1;
    if (place < 0 || place >= lane.numbered || lane.sender !== error.sender || lane.lookup) return "";
    const message = lane.queue[place];
    const flow = this.flow(error.conversation);
    const later = LATER.has(error.code) || (!NEVER.has(error.code) && error.retry_after_ms > 0);
    let pause = Math.max(error.retry_after_ms ?? 0, 100) + Math.random() * 100;
    let then = "";
    if (error.code === "unauthorized") {
      pause += 1000;
      then = "token";
    } else if (error.code === "forbidden") {
      // A gateway's cache decides nothing: whether the grant has ended the router says.
      pause = Math.min(1000 * 2 ** flow.refusals++, FORBIDDEN_PAUSE_MAX_MS);
      then = "sync";
    } else if (!later && message.refused) {
      pause = EMPTY_REFUSED_PAUSE_MS;
    } else if (!later) {
      pause = 0;
      message.refused = { id: random64(), code: error.code };
      this.save();
    }
    flow.pausedUntil = Math.max(flow.pausedUntil, now + pause);
    flow.next = Math.min(flow.next, error.counter); // It and all behind it go out again, in order.
    return then;
  }

  // Sends without an answer go out again.
  tick(now) {
    for (const [conversation, flow] of this.flows) {
      if (!flow.resendAt || flow.resendAt > now) continue;
      flow.resendWait = Math.min(flow.resendWait * 2, RESEND_LAST_MS);
      Object.assign(flow, { resendAt: 0, next: this.lane(conversation).acked + 1 });
    }
  }

  // The user gives up a message, or writes a failed one anew. Numbered ones can't be taken back.
  discard(conversation, id) {
    const lane = this.lane(conversation);
    lane.failed = lane.failed.filter((m) => m.id !== id);
    lane.queue = lane.queue.filter((m, place) => place < lane.numbered || m.id !== id);
    this.save();
  }
}

function currentId(message) {
  return message.refused?.id ?? message.id;
}
