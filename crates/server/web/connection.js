// One WebSocket at a time to the server: opened, authenticated, watched for silence, and opened
// again (docs/protocol.md, "Connecting", "Heartbeats" and "Close codes").

const SUBPROTOCOL = "tidings.v1.json";
const VERSION = 1;
const BACKOFF_FIRST_MS = 1_000;
const BACKOFF_LAST_MS = 30_000;
// From the first try to `ready`; a server that says nothing is as good as gone.
const READY_WITHIN_MS = 15_000;
// What comes back within this after a ping says that the connection lives.
const PONG_WITHIN_MS = 10_000;
// Who has said something and hears nothing asks after this much silence.
const UNHEARD_MAX_MS = 5_000;
// Sooner when the browser has just said that its network went or came.
const PROBE_WITHIN_MS = 3_000;
// Within this after `reauth_required` a fresh token is fetched.
const REAUTH_SPREAD_MS = 20_000;
// Connections that the server announced to end, but didn't.
const RECONNECT_GRACE_MS = 5_000;

const AT_ONCE = new Set([1001, 1012, 4001, 4006, 4009]);
const GIVE_UP = new Set([1000, 1003, 4002, 4003, 4005, 4010]);

// What to do after a close: "reconnect" (a failure like the first), "later" (one step up) or
// "give up". Of codes it doesn't know a client gives up from 4500 to 4999.
export function afterClose(code) {
  if (AT_ONCE.has(code)) return "reconnect";
  if (GIVE_UP.has(code) || (code >= 4500 && code <= 4999)) return "give up";
  return "later";
}

// Full jitter: anything up to min(1 s · 2ⁿ, 30 s), n counting the failures since `ready`.
export function backoff(failures, random = Math.random) {
  return random() * Math.min(BACKOFF_FIRST_MS * 2 ** failures, BACKOFF_LAST_MS);
}

export class Connection {
  // `token(stale)` gives an access token (a fresh one when the last was refused) or throws;
  // an error with `signedOut` ends it all. `on` has ready, update, down and ended.
  constructor({ url, device, token, on }) {
    Object.assign(this, { url, device, token, on, state: "stopped", failures: 0, lastRef: 0, refused: false });
    this.offline = () => this.probe();
    this.online = () => (this.state === "waiting" ? this.connect() : this.probe());
  }

  start() {
    addEventListener("offline", this.offline);
    addEventListener("online", this.online);
    this.ticker = setInterval(() => this.tick(performance.now()), 1000);
    this.failures = 0;
    this.connect();
  }

  stop() {
    removeEventListener("offline", this.offline);
    removeEventListener("online", this.online);
    clearInterval(this.ticker);
    clearTimeout(this.timer);
    this.state = "stopped";
    const socket = this.socket;
    this.socket = null;
    socket?.close(1000);
  }

  get ready() {
    return this.state === "ready";
  }

  ref() {
    return ++this.lastRef;
  }

  // Up to 256 commands a frame; false when there is no connection to send on.
  send(commands) {
    if (!this.ready) return false;
    for (let at = 0; at < commands.length; at += 200) this.put(commands.slice(at, at + 200));
    return true;
  }

  put(commands) {
    this.socket.send(JSON.stringify(commands.length === 1 ? commands[0] : commands));
    this.sentAt = performance.now();
    this.unheardAt ||= this.sentAt;
  }

  connect() {
    clearTimeout(this.timer);
    const old = this.socket;
    this.socket = null;
    old?.close();
    const now = performance.now();
    Object.assign(this, { state: "connecting", openedAt: now, sentAt: now, unheardAt: 0, deadline: 0, leaveAt: 0, comeBackAt: 0, heartbeat: 25_000 });
    const socket = new WebSocket(this.url, SUBPROTOCOL);
    this.socket = socket;
    // A socket that was given up may still say something; only the present one counts.
    const mine = (then) => (event) => this.socket === socket && then(event);
    socket.onmessage = mine((event) => this.heard(event.data));
    socket.onclose = mine((event) => this.closed(event.code));
  }

  heard(data) {
    this.deadline = this.unheardAt = 0;
    let updates;
    try {
      updates = JSON.parse(data);
    } catch {
      return this.closed(1007);
    }
    for (const update of Array.isArray(updates) ? updates : [updates]) this.take(update);
  }

  take(update) {
    switch (update.type) {
      case "hello":
        this.hello = update;
        this.heartbeat = update.heartbeat_ms || this.heartbeat;
        return this.authenticate();
      case "ready":
        if (this.ready) return; // The answer to a token given anew.
        Object.assign(this, { state: "ready", failures: 0, refused: false });
        return this.on.ready(update, this.hello);
      case "reauth_required": {
        // It comes 60 s before the end, to all that signed in together: not all ask at once.
        const { socket } = this;
        setTimeout(() => this.socket === socket && this.authenticate(), Math.random() * REAUTH_SPREAD_MS);
        return;
      }
      case "reconnect":
        this.comeBackAt = performance.now() + (update.after_ms ?? 0);
        this.leaveAt = this.comeBackAt + RECONNECT_GRACE_MS;
        return;
      case "pong":
        return;
      case "error":
        // Without a conversation it is about the token, and 1008 follows.
        if (update.code === "unauthorized" && !update.conversation) this.refused = true;
    }
    this.on.update(update);
  }

  async authenticate() {
    const socket = this.socket;
    try {
      const fresh = this.refused || this.ready;
      const token = await this.token(fresh);
      if (this.socket !== socket || socket?.readyState !== WebSocket.OPEN) return;
      this.put([{ type: "auth", ref: this.ref(), token, device: this.device, version: VERSION }]);
    } catch (error) {
      if (this.socket !== socket) return;
      if (error.signedOut) return this.end(4002);
      // The connection may live on with the token it has; without one it is a failure.
      if (!this.ready) this.closed(1013);
    }
  }

  // Closed by either side, or as good as.
  closed(code) {
    const socket = this.socket;
    this.socket = null;
    if (socket && socket.readyState <= WebSocket.OPEN) socket.close();
    const then = afterClose(code);
    if (then === "give up") return this.end(code);
    // A connection that never became ready is a failure, whatever its code.
    const wasReady = this.ready;
    if (code === 4001) this.refused = true;
    if (then === "later" || !wasReady) this.failures++;
    const announced = this.comeBackAt - performance.now();
    const wait = announced > 0 ? announced : backoff(this.failures);
    this.state = "waiting";
    this.on.down(wait);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.connect(), wait);
  }

  end(code) {
    this.stop();
    this.on.ended(code);
  }

  // The user doesn't want to wait.
  hurry() {
    if (this.state === "waiting") this.connect();
  }

  // Whether a network is there the browser only guesses (a server on this very machine needs
  // none), so the connection is asked, not dropped.
  probe() {
    if (!this.ready) return;
    this.put([{ type: "ping", ref: this.ref() }]);
    this.deadline = performance.now() + PROBE_WITHIN_MS;
  }

  tick(now) {
    if (this.state === "connecting" && now - this.openedAt > READY_WITHIN_MS) return this.closed(1006);
    if (!this.ready) return;
    if (this.deadline && now > this.deadline) return this.closed(1006);
    if (this.leaveAt && now > this.leaveAt) return this.closed(1012);
    const unheard = this.unheardAt && now - this.unheardAt >= UNHEARD_MAX_MS;
    if (!this.deadline && (unheard || now - this.sentAt >= this.heartbeat)) {
      this.put([{ type: "ping", ref: this.ref() }]);
      this.deadline = now + PONG_WITHIN_MS;
    }
  }
}
