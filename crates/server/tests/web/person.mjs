// Somebody in front of a browser window: does and sees what a user does and sees.

import assert from "node:assert/strict";

export const PASSWORD = "seven green teapots";

export class Person {
  static async arrive(browser, name, url, options = {}) {
    const context = await browser.newContext({ viewport: { width: 820, height: 640 }, locale: "en-GB", timezoneId: "UTC", ...options });
    const person = new Person(name, context, await context.newPage());
    await person.page.goto(url);
    return person;
  }

  constructor(name, context, page) {
    Object.assign(this, { name, context, page, faults: [] });
    page.setDefaultTimeout(15_000);
    page.on("pageerror", (error) => this.faults.push(String(error)));
    page.on("dialog", (dialog) => {
      this.faults.push(`dialog: ${dialog.message()}`);
      dialog.dismiss();
    });
    page.on("console", (message) => {
      // Requests that fail while the cable is cut are no fault of the page.
      if (message.type() === "error" && !/net::ERR|WebSocket connection|Failed to load resource/.test(message.text())) this.faults.push(message.text());
    });
  }

  // The same tab once more, with all that the tab keeps: what a browser calls duplicating it.
  async duplicate() {
    const opened = this.context.waitForEvent("page");
    await this.page.evaluate(() => void window.open(location.href));
    const page = await opened;
    await page.waitForSelector("#messages li");
    return new Person(`${this.name}'s other tab`, this.context, page);
  }

  // Calls the HTTP API as this user.
  async call(method, path, body) {
    const status = await this.page.evaluate(async ([method, path, body]) => {
      const { access } = JSON.parse(sessionStorage.getItem("tidings.session"));
      const headers = { authorization: `Bearer ${access}`, "content-type": "application/json" };
      return (await fetch(path, { method, headers, body: body && JSON.stringify(body) })).status;
    }, [method, path, body]);
    assert.ok(status < 300, `${method} ${path}: ${status}`);
  }

  async id() {
    return this.page.evaluate(() => JSON.parse(sessionStorage.getItem("tidings.session")).user);
  }

  async signUp() {
    await this.page.fill("#name", this.name);
    await this.page.fill("#password", PASSWORD);
    await this.page.click("#register");
    await this.page.waitForSelector("#app:not([hidden])");
    await this.online();
  }

  async online() {
    await this.page.waitForSelector("#state", { state: "hidden" });
  }

  async find(name) {
    await this.page.fill("#find", name);
    await this.page.press("#find", "Enter");
    await this.title(name);
  }

  async open(title) {
    await this.page.click(`#conversations button:has(.title:text-is("${title}"))`);
    await this.title(title);
  }

  async title(title) {
    await this.page.waitForFunction((title) => document.querySelector("#title").textContent === title && !document.querySelector("#text").disabled && document.querySelector("#text").offsetParent, title);
  }

  async write(text) {
    await this.page.fill("#text", text);
    await this.page.press("#text", "Enter");
  }

  // The messages on the page, in order.
  async messages() {
    return this.page.$$eval("#messages li:not(.note) > .body", (all) => all.map((body) => body.textContent));
  }

  async sees(text) {
    await this.page.waitForFunction((text) => [...document.querySelectorAll("#messages li > .body")].some((b) => b.textContent === text), text);
  }

  // How a message of one's own is marked: waiting, sent, delivered, read or failed.
  async marked(text, ...statuses) {
    await this.page.waitForFunction(
      ([text, statuses]) => [...document.querySelectorAll("#messages li.mine")].some((li) => li.querySelector(".body").textContent === text && statuses.includes(li.dataset.status)),
      [text, statuses],
    );
  }

  // Waits until nothing waits any more and `count` messages are there, each of them once.
  async holds(count) {
    await this.page.waitForFunction((count) => document.querySelectorAll("#messages li:not(.note)").length >= count && !document.querySelector("#messages li[data-status=waiting]"), count);
    const messages = await this.messages();
    assert.equal(messages.length, count, `${this.name} has ${JSON.stringify(messages)}`);
    assert.equal(new Set(messages).size, count, `${this.name} has one twice`);
    return messages;
  }
}

export function same(one, other) {
  assert.deepEqual(one, other, "both windows show the same order");
}
