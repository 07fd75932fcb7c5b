// Two people chat on the page in two real browser windows, lose their connections and the server
// in between, and end up with the same conversation. Run by ../web.sh.

import assert from "node:assert/strict";
import { mkdir, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";
import { Person, PASSWORD, same } from "./person.mjs";
import { Proxy, Server } from "./server.mjs";

const { chromium } = createRequire(join(process.env.TIDINGS_WEB_MODULES, "package.json"))("playwright-core");
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"];
const pictures = process.env.TIDINGS_SCREENSHOTS;

const server = await Server.start(process.env.TIDINGS_BIN);
const proxy = await Proxy.start(server.port);
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: FLAGS });
const started = performance.now();
const step = (text) => console.log(`${((performance.now() - started) / 1000).toFixed(1).padStart(6)} s  ${text}`);

async function picture(name, page) {
  if (!pictures) return;
  await mkdir(pictures, { recursive: true });
  await page.screenshot({ path: join(pictures, name) });
}

// Both windows on one page, as they are at this moment.
async function bothWindows(one, two) {
  if (!pictures) return;
  const page = await browser.newPage({ viewport: { width: 1720, height: 720 } });
  await page.setContent('<body style="margin:0;background:#c9d3d9;display:flex;gap:24px;padding:40px 28px;justify-content:center"></body>');
  for (const person of [one, two]) {
    const shot = await person.page.screenshot();
    await page.evaluate(async (src) => {
      const image = new Image();
      image.style.cssText = "border-radius:12px;box-shadow:0 12px 40px rgb(0 0 0/25%)";
      image.src = src;
      await image.decode();
      document.body.append(image);
    }, `data:image/png;base64,${shot.toString("base64")}`);
  }
  await mkdir(pictures, { recursive: true });
  await writeFile(join(pictures, "two-windows.png"), await page.screenshot());
  await page.close();
}

try {
  const anna = await Person.arrive(browser, "anna", `http://127.0.0.1:${server.port}/`);
  const bert = await Person.arrive(browser, "bert", `http://127.0.0.1:${proxy.port}/`);
  await picture("sign-in.png", anna.page);
  await anna.signUp();
  await bert.signUp();
  step("both have signed up");

  await anna.find("bert");
  await anna.write("Hi Bert! Are you on the train already?");
  await bert.open("anna");
  await bert.sees("Hi Bert! Are you on the train already?");
  await anna.marked("Hi Bert! Are you on the train already?", "read");
  await bert.page.type("#text", "Yes, ");
  await anna.page.waitForFunction(() => document.querySelector("#typing").textContent === "bert is typing …");
  await anna.page.waitForFunction(() => document.querySelector("#subtitle").textContent === "online");
  await bert.write("Yes, just left. There is a long tunnel coming up.");
  await anna.sees("Yes, just left. There is a long tunnel coming up.");
  assert.equal(await anna.page.textContent("#typing"), "", "whoever has written is not typing any more");
  step("they have found each other and talk");

  // Of what is written as the cable fails, the first arrives and only its ack is lost, the second
  // is lost on the way; then nothing goes at all.
  proxy.hang("down");
  await bert.write("Dark in here. Does this arrive?");
  await anna.sees("Dark in here. Does this arrive?");
  proxy.hang("down", "up");
  await bert.write("I hope you remembered the tickets!");
  await bert.context.setOffline(true);
  proxy.cut();
  await bert.page.waitForSelector("#state:not([hidden])");
  assert.match(await bert.page.textContent("#state-text"), /^You are offline\. Messages will be sent when you are back\.$/);
  for (const text of ["I have the tickets with me.", "Let's meet at the café by platform 4.", "The clock here is right, for once."]) {
    await anna.write(text);
    await anna.marked(text, "sent", "delivered");
  }
  await bert.write("See you at noon.");
  for (const text of ["Dark in here. Does this arrive?", "I hope you remembered the tickets!", "See you at noon."]) await bert.marked(text, "waiting");
  assert.equal((await anna.messages()).length, 6);
  assert.equal((await bert.messages()).length, 5);
  await picture("offline.png", bert.page);
  proxy.mend();
  await bert.context.setOffline(false);
  await bert.online();
  same(await anna.holds(8), await bert.holds(8));
  await anna.marked("Let's meet at the café by platform 4.", "read");
  step("one was offline while both wrote: the same order, nothing missing or twice");

  await anna.page.fill("#group", "Lunch on Friday");
  await anna.page.press("#group", "Enter");
  await anna.title("Lunch on Friday");
  await anna.page.click("#people summary");
  await anna.page.fill("#add", "bert");
  await anna.page.press("#add", "Enter");
  await anna.page.waitForSelector('#members li:has-text("bert")');
  await picture("people.png", anna.page);
  await anna.page.press("#add", "Escape");
  await anna.write("Noodles or pizza?");
  await bert.page.waitForSelector('#conversations button:has-text("Lunch on Friday") .badge:text-is("1")');
  await bert.open("Lunch on Friday");
  await bert.write("Noodles!");
  await anna.sees("Noodles!");
  step("a group, somebody added to it, an unread mark");

  for (const who of [anna, bert]) await who.open(who === anna ? "bert" : "anna");
  for (const who of [anna, bert]) await who.page.waitForFunction(() => !document.querySelector(".badge:not([hidden])"));
  await anna.marked("The clock here is right, for once.", "read");
  await bert.marked("See you at noon.", "read");
  await bothWindows(anna, bert);

  const nasty = ["<script>alert(1)</script>", "<img src=x onerror=alert(2)>", "javascript:alert(3)", "[x](javascript:alert(4)) https://example.com/", "\u202Edlrow", "שלום עולם, hello 🎫", "{{constructor.constructor('alert(5)')()}}"];
  for (const text of nasty) await bert.write(text);
  for (const text of nasty) await anna.sees(text);
  assert.equal(await anna.page.$$eval("#messages script, #messages img, #messages a, #messages iframe", (all) => all.length), 0);
  step("markup and links are shown as the text they are");

  const before = await anna.holds(15);
  await server.kill();
  await anna.page.waitForSelector("#state:not([hidden])");
  await bert.page.waitForSelector("#state:not([hidden])");
  await anna.write("written while the server was dead");
  await bert.write("so was this");
  const address = bert.page.url();
  await bert.page.reload().catch(() => {}); // Nobody is there to answer.
  await server.run();
  // The browser's own error page may come a moment after the refusal, and takes the place of what is opened before it.
  // So from an empty page, where nothing of the old one is left to be taken for the new one.
  for (const until = performance.now() + 30_000; ; await bert.page.waitForTimeout(250)) {
    const opening = bert.page.goto("about:blank").then(() => bert.page.goto(address));
    const refused = await opening.then(() => "", (error) => error.message.split("\n")[0]);
    if (!refused && (await bert.page.$("#messages"))) break;
    assert.ok(performance.now() < until, `the page cannot be opened again: ${refused}`);
    step(`opened again: ${refused}`);
  }
  same(await anna.holds(17), await bert.holds(17));
  same((await anna.messages()).slice(0, 15), before);
  step("the server was killed while both wrote: the same again");

  for (let i = 1; i <= 60; i++) await anna.write(`line ${i}`);
  await bert.sees("line 60");
  for (const who of [anna, bert]) await who.page.reload();
  for (const who of [anna, bert]) {
    await who.sees("line 60");
    assert.ok((await who.messages()).length < 77, "the newest page comes first");
    await who.page.$eval("#scroll", (scroll) => (scroll.scrollTop = 0));
  }
  const all = await anna.holds(77);
  same(all, await bert.holds(77));
  same(all.slice(0, 15), before);
  same(all.slice(17), Array.from({ length: 60 }, (_, i) => `line ${i + 1}`));
  step("after a reload the newest page comes first, older ones on scrolling up");

  for (const who of [anna, bert]) await who.open("Lunch on Friday");
  const group = `/v1/conversations/${new URL(anna.page.url()).hash.slice(1)}/members`;
  const bertId = await bert.id();
  await bert.page.waitForTimeout(1_500); // What he has read is on its way once a second.
  proxy.cut();
  await bert.page.waitForSelector("#state:not([hidden])");
  await bert.write("written before I knew");
  await anna.call("DELETE", `${group}/${bertId}`);
  await anna.page.waitForSelector('#messages .note:text-is("You removed bert")');
  proxy.mend();
  // "Try now", unless the page has tried by itself meanwhile.
  await bert.page.click("#state-action", { timeout: 1_000 }).catch(() => {});
  await bert.marked("written before I knew", "failed");
  assert.ok(await bert.page.isDisabled("#text"));
  assert.equal((await anna.messages()).length, 2);
  await anna.call("POST", group, { users: [bertId], role: "member" });
  await anna.sees("written before I knew");
  await bert.marked("written before I knew", "sent", "delivered", "read");
  same(await anna.holds(3), await bert.holds(3));
  step("removed while offline, what waited is marked; a member again, it is sent");

  const other = await anna.duplicate();
  await anna.page.waitForSelector('#state-text:text-is("This chat was opened in another window.")');
  await other.write("from the other tab");
  await bert.sees("from the other tab");
  await anna.write("from the first tab");
  await anna.page.click("#state-action");
  await bert.sees("from the first tab");
  await other.page.close();
  same(await anna.holds(5), await bert.holds(5));
  step("a duplicated tab: its outbox is a copy, and is noticed");

  await anna.open("bert");
  const phone = await Person.arrive(browser, "bert", `http://127.0.0.1:${server.port}/`, { viewport: { width: 390, height: 780 }, colorScheme: "dark", hasTouch: true, isMobile: true });
  await phone.page.fill("#name", "bert");
  await phone.page.fill("#password", `${PASSWORD}!`);
  await phone.page.click("#login");
  await phone.page.waitForFunction(() => document.querySelector("#sign-in-error").textContent !== "");
  await phone.page.fill("#password", PASSWORD);
  await phone.page.click("#login");
  await phone.page.waitForSelector('#conversations button:has-text("Lunch on Friday")');
  await picture("phone-list.png", phone.page);
  await phone.open("Lunch on Friday");
  await phone.write("From my phone: noodles it is.");
  await anna.page.waitForSelector('#conversations button:has-text("Lunch on Friday") .badge:text-is("1")');
  await bert.sees("From my phone: noodles it is.");
  await picture("phone-chat.png", phone.page);
  const wide = await phone.page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
  assert.ok(!wide, "nothing is wider than a phone");
  step("a second device of one user, at the width of a phone");

  await bert.page.click("#sign-out");
  await bert.page.waitForSelector("#sign-in:not([hidden])");
  assert.equal(await bert.page.evaluate(() => sessionStorage.length), 0, "nothing stays behind");
  for (const who of [anna, bert, other, phone]) assert.deepEqual(who.faults, [], `faults on ${who.name}'s page`);
  step("signed out; no fault on any page");
} catch (error) {
  console.error(error);
  process.exitCode = 1;
} finally {
  await browser.close();
  proxy.stop();
  await server.stop();
}
