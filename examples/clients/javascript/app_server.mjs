// A client of codex app-server, over stdio or a WebSocket: requests and answers, notifications, requests of the server.
import { spawn } from "node:child_process";
import { EventEmitter } from "node:events";
import { createInterface } from "node:readline";

/**
 * One connection. Emits "notification" {method, params} for each notification, and "close" when the connection ends.
 * `onRequest(method, params)` answers requests of the server, such as approvals; it may be async.
 */
export class AppServer extends EventEmitter {
  #send;
  #end;
  #next = 1;
  #waiting = new Map();
  #onRequest;

  constructor(onRequest) {
    super();
    this.#onRequest = onRequest;
  }

  /** Connect to a server at unix://PATH, ws://HOST:PORT or wss://HOST:PORT, with a bearer token if there is one. */
  static async connect(url, { onRequest, token } = {}) {
    const { default: WebSocket } = await import("ws");
    const address = url.startsWith("unix://") ? `ws+unix:${url.slice("unix://".length)}:/rpc` : url;
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    const socket = new WebSocket(address, { headers, perMessageDeflate: false, maxPayload: 128 * 1024 * 1024 });
    const server = new AppServer(onRequest);
    server.#send = (text) => socket.send(text);
    server.#end = () => socket.close();
    socket.on("message", (data) => server.#receive(data.toString()));
    socket.on("close", () => server.#closed());
    await new Promise((resolve, reject) => {
      socket.once("open", resolve);
      socket.on("error", reject);
    });
    return server;
  }

  /** Start a program that speaks app-server over stdio, such as ["codex-pool", "bridge"] or ["codex", "app-server"]. */
  static async spawn([program, ...args], { onRequest } = {}) {
    const child = spawn(program, args, { stdio: ["pipe", "pipe", "inherit"] });
    const server = new AppServer(onRequest);
    server.#send = (text) => child.stdin.write(`${text}\n`);
    server.#end = () => child.stdin.end();
    child.stdin.on("error", () => {});
    createInterface({ input: child.stdout }).on("line", (line) => server.#receive(line));
    child.on("close", () => server.#closed());
    await new Promise((resolve, reject) => {
      child.once("spawn", resolve);
      child.on("error", reject);
    });
    return server;
  }

  /** The answer to `method`; rejects with the error of the server, or when the connection ends. */
  request(method, params = {}) {
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject, method });
      this.#send(JSON.stringify({ id, method, params }));
    });
  }

  notify(method, params) {
    this.#send(JSON.stringify({ method, params }));
  }

  /** The first request of each connection. */
  async initialize(name, version) {
    const answer = await this.request("initialize", {
      clientInfo: { name, version, title: null },
      capabilities: { experimentalApi: true },
    });
    this.notify("initialized");
    return answer;
  }

  close() {
    this.#end();
  }

  #receive(text) {
    const message = JSON.parse(text);
    if (message.method === undefined) {
      const { resolve, reject, method } = this.#waiting.get(message.id) ?? {};
      this.#waiting.delete(message.id);
      if (message.error) reject?.(new Error(`${method}: ${message.error.message} (${message.error.code})`));
      else resolve?.(message.result);
    } else if (message.id === undefined) {
      this.emit("notification", message);
    } else {
      this.#answer(message);
    }
  }

  async #answer({ id, method, params }) {
    let answer;
    try {
      answer = { id, result: await this.#onRequest(method, params) };
    } catch (error) {
      answer = { id, error: { code: -32603, message: String(error) } };
    }
    // When the connection has ended meanwhile, the server asks the next one that resumes the thread.
    if (!this.closed) this.#send(JSON.stringify(answer));
  }

  #closed() {
    this.closed = true;
    for (const { reject, method } of this.#waiting.values()) reject(new ConnectionLost(`${method}: connection lost`));
    this.#waiting.clear();
    this.emit("close");
  }
}

export class ConnectionLost extends Error {}
