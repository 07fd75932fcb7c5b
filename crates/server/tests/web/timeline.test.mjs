// Cursors, holes, pages and close codes of the page, against docs/protocol.md.

import assert from "node:assert/strict";
import test from "node:test";
import { afterClose, backoff } from "../../web/connection.js";
import { Timeline } from "../../web/timeline.js";

const ME = "00000000000000a1";
const YOU = "00000000000000b2";
const C = "00f3010203040506";

const event = (seq, user = YOU) => ({ type: "message", conversation: C, seq, ts: seq, user, id: String(seq).padStart(16, "0"), kind: "text", body: `m${seq}` });
const range = (from, to) => Array.from({ length: to - from + 1 }, (_, i) => event(from + i));
const page = (from, to, more = {}) => ({ conversation: C, conversation_kind: "group", head: to, grant: 1, role: "member", visible_from: 1, read: 0, events: range(from, to), ...more });
const seqs = (timeline) => timeline.events.map((e) => e.seq);

function at(from, to, more) {
  const timeline = new Timeline(C);
  timeline.page(page(from, to, more));
  return timeline;
}

test("every seq is shown once and in order, however events arrive", () => {
  const timeline = at(1, 3);
  assert.equal(timeline.live(event(6)), "hole");
  assert.equal(timeline.live(event(5)), "hole");
  assert.equal(timeline.live(event(2)), "old");
  assert.deepEqual(seqs(timeline), [1, 2, 3]);
  assert.ok(timeline.missing);
  assert.equal(timeline.live(event(4)), "next");
  assert.equal(timeline.live(event(5)), "old");
  assert.deepEqual(seqs(timeline), [1, 2, 3, 4, 5, 6]);
  assert.ok(!timeline.missing);
});

test("history fills a hole, and hidden seqs count as had", () => {
  const timeline = at(1, 3);
  timeline.live(event(8));
  timeline.history({ from: 4, to: 7, events: [event(5), event(7)], head: 8 });
  assert.deepEqual(seqs(timeline), [1, 2, 3, 5, 7, 8]);
  assert.equal(timeline.have, 8);
});

test("history that doesn't join what is held is not mixed in", () => {
  const timeline = at(50, 60, { missing_from: 1 });
  timeline.history({ from: 10, to: 20, events: range(10, 20), head: 60 });
  timeline.history({ from: 70, to: 71, events: range(70, 71), head: 71 });
  assert.deepEqual(seqs(timeline), seqs(at(50, 60)));
});

test("older pages come on demand, down to the first seq that may be seen", () => {
  const timeline = at(50, 60, { missing_from: 41, visible_from: 41 });
  assert.ok(timeline.hasOlder);
  timeline.history({ from: 45, to: 49, events: range(45, 49), head: 60 });
  assert.ok(timeline.hasOlder);
  timeline.history({ from: 41, to: 44, events: [event(44)], head: 60 });
  assert.ok(!timeline.hasOlder);
  assert.deepEqual(seqs(timeline), [44, ...range(45, 60).map((e) => e.seq)]);
});

test("far behind, the newest page takes the place of what was held", () => {
  const timeline = at(1, 5);
  timeline.page(page(90, 99, { missing_from: 6, head: 102 }));
  timeline.page(page(100, 102));
  assert.deepEqual(seqs(timeline), range(90, 102).map((e) => e.seq));
  assert.ok(timeline.hasOlder);
});

test("a grant begins with a start or a change of kind, and older news is ignored", () => {
  const timeline = at(1, 5);
  const change = (seq, role, ended) => timeline.changeSelf({ seq, changes: [{ user: YOU, role: "none" }, { user: ME, role, ended }] }, ME);
  change(4, "none", 1);
  assert.deepEqual([timeline.role, timeline.grant], ["member", 1]);
  change(6, "admin");
  assert.deepEqual([timeline.role, timeline.grant], ["admin", 1]);
  change(7, "reader", 1);
  assert.deepEqual([timeline.role, timeline.grant], ["reader", 0]);
  change(8, "member", 7);
  assert.deepEqual([timeline.role, timeline.grant], ["member", 8]);
});

test("ticks say what every other member has, and never go back", () => {
  const timeline = at(1, 5);
  for (const user of [ME, YOU, "00000000000000c3"]) timeline.members.set(user, "member");
  timeline.receipt(YOU, 5, 4);
  assert.equal(timeline.reached(4, ME), "sent");
  timeline.receipt("00000000000000c3", 4, 0);
  assert.equal(timeline.reached(4, ME), "delivered");
  timeline.receipt("00000000000000c3", 3, 4);
  assert.equal(timeline.reached(4, ME), "read");
  timeline.receipt("00000000000000c3", 1, 1);
  assert.equal(timeline.reached(4, ME), "read");
});

test("unread are messages of others above the read cursor", () => {
  const timeline = at(1, 5, { read: 2 });
  timeline.live(event(6, ME));
  assert.deepEqual(timeline.unread(ME), { count: 3, more: false });
  assert.deepEqual(at(50, 60, { missing_from: 1, read: 3 }).unread(ME), { count: 11, more: true });
});

test("close codes lead to what the protocol says", () => {
  for (const code of [1001, 1012, 4001, 4006, 4009]) assert.equal(afterClose(code), "reconnect", code);
  for (const code of [1002, 1006, 1007, 1008, 1009, 1011, 1013, 4004, 4008, 4100, 4300]) assert.equal(afterClose(code), "later", code);
  for (const code of [1000, 1003, 4002, 4003, 4005, 4010, 4500, 4999]) assert.equal(afterClose(code), "give up", code);
});

test("the backoff doubles up to 30 s, with full jitter", () => {
  assert.deepEqual([0, 1, 4, 5, 60].map((n) => backoff(n, () => 1)), [1000, 2000, 16000, 30000, 30000]);
  assert.equal(backoff(9, () => 0), 0);
});
