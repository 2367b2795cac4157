// A client of samehost's JSON lines, written from section 10 of docs/PROTOCOL.md alone: calls, many at a time, and
// notifications. It leaves out streams (calls go without `items_wanted`), batches and cancelling.

import net from "node:net";
import readline from "node:readline";

import { CallError } from "./client.mjs";

/** Connect; `call` gives a promise of the result or of a CallError, `closed` tells that the connection has ended. */
export function connect(path) {
  const socket = net.connect(path);
  const open = new Map();
  let last = -1;
  let going = null;
  const send = (message) => socket.write(`${JSON.stringify({ jsonrpc: "2.0", ...message })}\n`);
  const handle = ({ id, method, params, result, error }) => {
    if (method === "$/ping") send({ method: "$/pong", params });
    else if (method === "$/goingAway") going = params;
    else if (method === undefined && id === null) socket.destroy(new Error(`not ours: ${error.message}`));
    else if (method === undefined && error) {
      const { code = "failed", id: logged, data } = error.data ?? {};
      open.get(id)?.reject(new CallError(code, error.message, logged, data));
    } else if (method === undefined) open.get(id)?.resolve(result);
    if (method === undefined) open.delete(id);
    if (going && open.size === 0) socket.end();
  };
  const call = (method, params = {}, { timeoutMs = 0 } = {}) =>
    new Promise((resolve, reject) => {
      if (going || socket.destroyed) throw new CallError("draining", "not sent: the server goes away");
      open.set((last += 2), { resolve, reject });
      send({ id: last, method, params, options: { timeout_ms: timeoutMs, items_wanted: false } });
    });
  const lose = () => open.forEach(({ reject }) => reject(new CallError("unavailable", "the connection was lost")));
  const closed = new Promise((resolve) => socket.once("close", resolve)).then(lose);
  socket.on("error", () => {}); // "close" follows
  readline.createInterface({ input: socket, crlfDelay: Infinity }).on("line", (line) => handle(JSON.parse(line)));
  return { call, notify: (method, params = {}) => send({ method, params }), close: () => socket.end(), closed };
}
