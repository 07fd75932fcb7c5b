// The outbox of the page against docs/protocol.md, "Sending": what each answer leads to.

import assert from "node:assert/strict";
import test from "node:test";
import { NONE, Outbox, WAITING_MAX } from "../../web/outbox.js";

const C = "00f3010203040506";
const NOW = 1_764_000_000_000;

class Memory extends Map {
  constructor(room = Infinity) {
    super();
    this.room = room;
  }
  getItem(key) {
    return this.get(key) ?? null;
  }
  setItem(key, value) {
    if (value.length > this.room) throw new Error("full");
    this.set(key, value);
  }
}

// An outbox with these messages numbered under grant 1 and sent once.
function sent(...bodies) {
  const storage = new Memory();
  const outbox = new Outbox(storage, "box");
  outbox.learn(C, 1);
  for (const body of bodies) outbox.add(C, body, 0);
  const commands = outbox.take(C, NOW, 100);
  return { storage, outbox, commands };
}

function ack(command, status, more = {}) {
  return { conversation: C, sender: command.sender, grant: command.grant, counter: command.counter, id: command.id, seq: 10 + command.counter, ts: 1, head: 50, status, ...more };
}

const counters = (commands) => commands.map((c) => c.counter);
const bodies = (messages) => messages.map((m) => m.body);

test("a message waits unnumbered until its grant is known, then keeps its number over a reload", () => {
  const storage = new Memory();
  const outbox = new Outbox(storage, "box");
  outbox.add(C, "a", 0);
  assert.deepEqual(outbox.take(C, NOW, 100), []);
  outbox.learn(C, 7);
  outbox.add(C, "b", 0);
  const first = outbox.take(C, NOW, 100);
  assert.deepEqual(counters(first), [1, 2]);
  assert.equal(first[0].previous, undefined);
  assert.equal(first[1].previous, first[0].id);
  assert.deepEqual(outbox.take(C, NOW, 100), [], "nothing goes out twice on one connection");

  const reloaded = new Outbox(storage, "box");
  reloaded.learn(C, 7);
  assert.deepEqual(reloaded.take(C, NOW, 100), first, "the same bytes");
});

test("no more goes out, and gets a number, than there is room for", () => {
  const storage = new Memory();
  const outbox = new Outbox(storage, "box");
  outbox.learn(C, 1);
  for (const body of "abcde") outbox.add(C, body, 0);
  assert.deepEqual(counters(outbox.take(C, NOW, 2)), [1, 2]);
  assert.equal(outbox.lane(C).numbered, 2);
  assert.deepEqual(counters(outbox.take(C, NOW, 100)), [3, 4, 5]);
});

// What an answer to the third of three messages takes out of the outbox, what goes out again, and
// whether the outbox takes itself for a copy.
const VERDICTS = [
  { name: "sent is cumulative", answer: (c) => ack(c[2], "sent"), takes: "abc", again: [] },
  { name: "a repeated one says the same", answer: (c) => ack(c[2], "sent", { duplicate: true }), takes: "abc", again: [] },
  { name: "sent up to the second", answer: (c) => ack(c[1], "sent"), takes: "ab", again: [] },
  { name: "gap from the start", answer: (c) => ack(c[0], "gap", { counter: 0, id: NONE, seq: 0 }), takes: "", again: [1, 2, 3] },
  { name: "gap behind the first", answer: (c) => ack(c[0], "gap"), takes: "a", again: [2, 3] },
  { name: "over: the rest waits for the next grant", answer: (c) => ack(c[0], "over"), takes: "a", again: [], waits: "bc" },
  { name: "over before any", answer: (c) => ack(c[0], "over", { counter: 0, id: NONE, seq: 0 }), takes: "", again: [], waits: "abc" },
  { name: "another id under n: a copy", answer: (c) => ack(c[0], "sent", { id: "f".repeat(16) }), takes: "", again: [], copy: true },
  { name: "a counter never given: a copy", answer: (c) => ack(c[2], "sent", { counter: 4, id: "f".repeat(16) }), takes: "", again: [], copy: true },
  { name: "fork that isn't a replaced message: a copy", answer: (c) => ack(c[1], "fork", { id: "e".repeat(16) }), takes: "", again: [], copy: true },
  { name: "stale for the grant in use: a copy", answer: (c) => ack(c[0], "stale", { counter: 0, id: NONE }), takes: "", again: [], copy: true },
  { name: "of another sender id: old news", answer: (c) => ack(c[2], "sent", { sender: "9".repeat(16) }), takes: "", again: [] },
  { name: "of another grant: old news", answer: (c) => ack(c[2], "stale", { grant: 9 }), takes: "", again: [] },
];

for (const { name, answer, takes, again, copy = false, waits } of VERDICTS) {
  test(`answer: ${name}`, () => {
    const { outbox, commands } = sent("a", "b", "c");
    const result = outbox.answered(answer(commands), NOW);
    assert.equal(bodies(result.sent).join(""), takes);
    assert.equal(Boolean(result.lookup), copy);
    assert.deepEqual(counters(outbox.take(C, NOW, 100)), again);
    if (waits) assert.equal(bodies(outbox.waiting(C)).join(""), waits);
  });
}

test("an answer with a lower n is old news", () => {
  const { outbox, commands } = sent("a", "b", "c");
  outbox.answered(ack(commands[1], "sent"), NOW);
  const late = outbox.answered(ack(commands[0], "gap"), NOW);
  assert.deepEqual(late, { sent: [], lookup: null });
  assert.deepEqual(outbox.take(C, NOW, 100), []);
});

test("another id under a counter that was acknowledged: a copy", () => {
  const { outbox, commands } = sent("a", "b");
  outbox.answered(ack(commands[0], "sent"), NOW);
  assert.ok(outbox.answered(ack(commands[0], "sent", { id: "f".repeat(16) }), NOW).lookup);
});

test("many answers that tell of one gap send what is missing once", () => {
  const { outbox, commands } = sent("a", "b", "c");
  const gap = ack(commands[0], "gap", { counter: 0, id: NONE, seq: 0 });
  outbox.answered(gap, NOW);
  assert.deepEqual(counters(outbox.take(C, NOW, 100)), [1, 2, 3]);
  outbox.answered(gap, NOW);
  assert.deepEqual(outbox.take(C, NOW, 100), []);
});

test("under the next grant counting begins anew, without the fields of the old one", () => {
  const { outbox, commands } = sent("a", "b", "c");
  outbox.answered(ack(commands[0], "over"), NOW);
  outbox.learn(C, 30);
  const again = outbox.take(C, NOW, 100);
  assert.deepEqual(again.map((c) => [c.grant, c.counter, c.body]), [[30, 1, "b"], [30, 2, "c"]]);
  assert.equal(again[0].previous, undefined);
});

test("a later grant is used only when the old grant's messages are all decided", () => {
  const { outbox, commands } = sent("a", "b");
  outbox.learn(C, 30);
  outbox.add(C, "c", 0);
  assert.deepEqual(outbox.take(C, NOW, 100), []);
  outbox.answered(ack(commands[1], "sent"), NOW);
  assert.deepEqual(outbox.take(C, NOW, 100).map((c) => [c.grant, c.counter, c.body]), [[30, 1, "c"]]);
});

test("a copy counts what the history shows as sent, and sends the rest under a fresh sender id", () => {
  const { storage, outbox, commands } = sent("a", "b", "c");
  const { lookup } = outbox.answered(ack(commands[0], "sent", { id: "f".repeat(16) }), NOW);
  assert.deepEqual(lookup, { from: 2, to: 50 });
  assert.deepEqual(outbox.take(C, NOW, 100), [], "nothing goes out meanwhile");

  const reloaded = new Outbox(storage, "box");
  reloaded.learn(C, 1);
  assert.deepEqual(reloaded.lane(C).lookup, lookup, "a reload goes on looking");
  assert.ok(reloaded.seen({ conversation: C, id: commands[1].id }));
  assert.ok(!reloaded.seen({ conversation: C, id: "f".repeat(16) }));
  reloaded.fresh(C);
  const again = reloaded.take(C, NOW, 100);
  assert.deepEqual(again.map((c) => [c.counter, c.body, c.id]), [[1, "a", commands[0].id], [2, "c", commands[2].id]]);
  assert.notEqual(again[0].sender, commands[0].sender);
});

test("a sender id without an answer for over 365 days is left", () => {
  const { outbox } = sent("a");
  assert.equal(outbox.expired(C, NOW + 365 * 86_400_000, 9), null);
  assert.deepEqual(outbox.expired(C, NOW + 366 * 86_400_000, 9), { from: 2, to: 9 });
});

test("a message refused for good becomes an empty one of the same counter", () => {
  const { outbox, commands } = sent("a", "b", "c");
  outbox.refused({ conversation: C, sender: commands[1].sender, counter: 2, code: "refused" }, NOW);
  const again = outbox.take(C, NOW, 100);
  assert.deepEqual(again.map((c) => [c.counter, c.kind]), [[2, "empty"], [3, "text"]]);
  assert.equal(again[0].body, undefined);
  assert.notEqual(again[0].id, commands[1].id);
  assert.equal(again[1].previous, again[0].id, "those behind it name the new id");
  assert.equal(again[1].id, commands[2].id);

  outbox.answered(ack(again[0], "sent"), NOW);
  assert.deepEqual(outbox.failed(C).map((m) => [m.body, m.code]), [["b", "refused"]]);
});

test("a fork that names either id of a replaced message is none of a copy", () => {
  const { outbox, commands } = sent("a", "b", "c");
  outbox.refused({ conversation: C, sender: commands[1].sender, counter: 2, code: "refused" }, NOW);
  outbox.take(C, NOW, 100);
  const result = outbox.answered(ack(commands[1], "fork"), NOW);
  assert.equal(result.lookup, null);
  assert.deepEqual(bodies(result.sent), ["a", "b"], "the message itself was accepted by an earlier try");
  const [third] = outbox.take(C, NOW, 100);
  assert.deepEqual([third.counter, third.previous, third.id], [3, commands[1].id, commands[2].id]);
});

test("a refusal that may pass pauses the lane, and the same bytes go out again", () => {
  const { outbox, commands } = sent("a", "b", "c");
  outbox.refused({ conversation: C, sender: commands[0].sender, counter: 2, code: "rate_limited", retry_after_ms: 1500 }, NOW);
  assert.deepEqual(outbox.take(C, NOW + 1400, 100), []);
  assert.deepEqual(outbox.take(C, NOW + 1800, 100), commands.slice(1));
});

test("forbidden isn't for good: whether the grant has ended the router says", () => {
  const { outbox, commands } = sent("a");
  const then = outbox.refused({ conversation: C, sender: commands[0].sender, counter: 1, code: "forbidden" }, NOW);
  assert.equal(then, "sync");
  assert.deepEqual(outbox.take(C, NOW + 1100, 100), commands);
});

test("after a lost connection, and without an answer, all unacknowledged goes out again", () => {
  const { outbox, commands } = sent("a", "b", "c");
  outbox.answered(ack(commands[0], "sent"), NOW);
  outbox.down();
  assert.deepEqual(outbox.take(C, NOW, 100), commands.slice(1));
  outbox.tick(NOW + 14_000);
  assert.deepEqual(outbox.take(C, NOW + 14_000, 100), []);
  outbox.tick(NOW + 16_000);
  assert.deepEqual(outbox.take(C, NOW + 16_000, 100), commands.slice(1));
});

test("what can't be stored isn't taken", () => {
  const outbox = new Outbox(new Memory(600), "box");
  assert.ok(outbox.add(C, "a", 0));
  assert.equal(outbox.add(C, "b".repeat(600), 0), null);
  assert.deepEqual(bodies(outbox.waiting(C)), ["a"]);
  const many = new Outbox(new Memory(), "box");
  for (let i = 0; i < WAITING_MAX; i++) assert.ok(many.add(C, "x", 0));
  assert.equal(many.add(C, "x", 0), null);
});
