// Asks codex one thing, prints the answer as it comes, and asks you before a command leaves the sandbox.
//
//     node ask.mjs [--connect URL | --command "PROGRAM ARGUMENTS"] [--directory DIR] [--thread ID] PROMPT
import { setTimeout } from "node:timers/promises";
import { createInterface } from "node:readline/promises";
import { parseArgs } from "node:util";
import { AppServer, ConnectionLost } from "./app_server.mjs";

const RECONNECTS = 20;
const RECONNECT_MS = 500;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    connect: { type: "string" },
    command: { type: "string", default: "codex-pool bridge" },
    directory: { type: "string", default: process.cwd() },
    thread: { type: "string" },
  },
});
const prompt = positionals.join(" ");
if (!prompt) {
  console.error('usage: node ask.mjs [--connect URL | --command "PROGRAM ARGUMENTS"] [--thread ID] PROMPT');
  process.exit(2);
}

async function onRequest(method, params) {
  if (method === "item/commandExecution/requestApproval") {
    const terminal = createInterface({ input: process.stdin, output: process.stderr });
    const answer = await terminal.question(`Run ${params.command}? [y/N] `);
    terminal.close();
    return { decision: answer.trim() === "y" ? "accept" : "decline" };
  }
  if (method === "item/fileChange/requestApproval") return { decision: "decline" };
  throw new Error(`this client does not answer ${method}`);
}

async function open() {
  const options = { onRequest, token: process.env.CODEX_TOKEN };
  const server = values.connect
    ? await AppServer.connect(values.connect, options)
    : await AppServer.spawn(values.command.split(" "), options);
  await server.initialize("javascript-example", "1.0.0");
  return server;
}

/** Print the answers of the thread as they come, until its turn has ended. Called before the turn is started. */
function follow(server, state) {
  const ended = new Promise((resolve, reject) => {
    server.on("close", () => reject(new ConnectionLost("connection lost")));
    server.on("notification", ({ method, params }) => {
      if (params.threadId !== thread.id) return;
      if (method === "item/agentMessage/delta") print(params.delta, state);
      // Deltas from before a reconnect have been missed: the whole message makes up for them.
      if (method === "item/completed" && params.item.type === "agentMessage") finish(params.item.text, state);
      if (method === "error") console.error(`codex: ${params.error.message}`);
      if (method === "turn/completed") resolve(params.turn);
    });
  });
  // It may be that nobody waits yet.
  ended.catch(() => {});
  return ended;
}

function print(delta, state) {
  if (state.whole) process.stdout.write(delta);
  state.text += delta;
}

function finish(text, state) {
  if (!state.whole) process.stdout.write(text.slice(state.printed));
  process.stdout.write("\n");
  Object.assign(state, { text: "", printed: 0, whole: true });
}

let server = await open();
const { thread } = values.thread
  ? await server.request("thread/resume", { threadId: values.thread })
  : await server.request("thread/start", { cwd: values.directory, approvalPolicy: "on-request" });
console.error(`thread ${thread.id}`);

const state = { text: "", printed: 0, whole: true };
let ended = follow(server, state);
const input = [{ type: "text", text: prompt }];
const { turn } = await server.request("turn/start", { threadId: thread.id, input });
let last;
for (let lost = 0; last === undefined; lost++) {
  try {
    last = await ended;
  } catch (error) {
    if (!(error instanceof ConnectionLost) || !values.connect || lost === RECONNECTS) throw error;
    await setTimeout(RECONNECT_MS);
    if (state.whole) Object.assign(state, { printed: state.text.length, whole: false });
    last = await resume(turn.id).catch((failed) => console.error(`codex: ${failed.message}; trying again`));
  }
}
console.error(`turn ${last.status}`);
server.close();
process.exitCode = last.status === "completed" ? 0 : 1;

/** Connect again. The turn if it has ended meanwhile; else `ended` follows it. */
async function resume(turnId) {
  server = await open();
  ended = follow(server, state);
  await server.request("thread/resume", { threadId: thread.id });
  const { thread: read } = await server.request("thread/read", { threadId: thread.id, includeTurns: true });
  const found = read.turns.find((each) => each.id === turnId);
  if (!found || found.status === "inProgress") return undefined;
  for (const item of found.items) if (item.type === "agentMessage" && !state.whole) finish(item.text, state);
  return found;
}
