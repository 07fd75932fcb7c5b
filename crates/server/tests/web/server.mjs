// The server under test, on a folder of its own, and a proxy whose cable can be cut.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

const READY_WITHIN_MS = 30_000;

export class Server {
  static async start(binary) {
    const server = new Server();
    server.binary = binary;
    server.folder = await mkdtemp(join(tmpdir(), "tidings-web-"));
    server.port = 0;
    await server.run();
    return server;
  }

  // Starts the program on the same folder and, but for the first time, the same port.
  async run() {
    const args = ["--data", join(this.folder, "data"), "--listen", `127.0.0.1:${this.port}`, "--admin-listen", "127.0.0.1:0"];
    // This test's own settings are none of the server's.
    const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("TIDINGS_")));
    this.process = spawn(this.binary, args, { cwd: this.folder, env, stdio: ["ignore", "pipe", "pipe"] });
    this.ended = once(this.process, "exit");
    let said = "";
    for (const stream of [this.process.stdout, this.process.stderr]) stream.on("data", (data) => (said = (said + data).slice(-4000)));
    const until = Date.now() + READY_WITHIN_MS;
    for (;;) {
      const ready = /http:\/\/127\.0\.0\.1:(\d+)\//.exec(said);
      if (ready) {
        this.port = Number(ready[1]);
        return;
      }
      if (Date.now() > until || this.process.exitCode !== null) throw new Error(`the server did not start:\n${said}`);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  // Pulls the plug.
  async kill() {
    this.process.kill("SIGKILL");
    await this.ended;
  }

  async stop() {
    await this.kill();
    await rm(this.folder, { recursive: true, force: true });
  }
}

export class Proxy {
  static async start(port) {
    const proxy = new Proxy();
    Object.assign(proxy, { to: port, cable: true, sockets: new Map() });
    proxy.listener = net.createServer((socket) => proxy.join(socket));
    proxy.listener.listen(0, "127.0.0.1");
    await once(proxy.listener, "listening");
    proxy.port = proxy.listener.address().port;
    return proxy;
  }

  join(socket) {
    if (!this.cable) return void socket.destroy();
    const other = net.connect(this.to, "127.0.0.1");
    for (const [one, two, direction] of [[socket, other, "up"], [other, socket, "down"]]) {
      this.sockets.set(one, direction);
      one.pipe(two);
      one.on("error", () => two.destroy());
      one.on("close", () => {
        this.sockets.delete(one);
        two.destroy();
      });
    }
  }

  // The cable hangs: what is under way in these directions arrives nowhere any more.
  hang(...directions) {
    for (const [from, direction] of this.sockets) {
      if (directions.includes(direction)) from.unpipe().pause();
    }
  }

  cut() {
    this.cable = false;
    for (const socket of this.sockets.keys()) socket.destroy();
  }

  mend() {
    this.cable = true;
  }

  stop() {
    this.cut();
    this.listener.close();
  }
}
