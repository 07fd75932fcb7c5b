// What the page says of features that are less than usual.

import assert from "node:assert/strict";
import test from "node:test";

import { modeWords } from "../../web/modes.js";

test("all is well: nothing is said", () => {
  assert.equal(modeWords(new Map()), "");
  assert.equal(modeWords(new Map([["presence", "normal"]])), "");
});

test("the most important comes first, and no more than two are said", () => {
  const words = modeWords(new Map([["typing", "off"], ["presence", "reduced"], ["delivery", "reduced"]]));
  assert.match(words, /^The server takes no messages right now\. .* Who is online/);
  assert.doesNotMatch(words, /typing/);
});

test("what a later server adds is passed over", () => {
  assert.equal(modeWords(new Map([["calls", "off"]])), "");
});
