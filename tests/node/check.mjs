// Checks the clients beside it: `node check.mjs SOCKET PID`, with the service of test_node.py at SOCKET, whose process
// is PID and gets a SIGTERM in the end. What a real server does not do when asked, such as to send a PING, comes from
// a scripted one. Says on standard error what is not as docs/PROTOCOL.md has it, and exits 0 only if all is.

import assert from "node:assert/strict";
import { once, setMaxListeners } from "node:events";
import net from "node:net";

import { CallError, connect, decode, encode, Extension } from "./client.mjs";
import * as lines from "./lines.mjs";

const [path, pid] = process.argv.slice(2);
const DEADLINE_MS = 10000; // of each check
const hex = (text) => Buffer.from(text.replace(/\s/g, ""), "hex");

const PREFACE = hex("F5534850 01001C00 01000000 00000000 00000000 00004000 00010000");
const CLIENT_PREFACE = hex("F5534850 01001C00 01000000 00000000 00000000 00004000 00000000");
const CALL_NOW_1 = hex("09000000 01 00 0000 01000000 00000000 03 6E6F77 80");
const CALL_NOW_3 = hex("09000000 01 00 0000 03000000 00000000 03 6E6F77 80");
const CALL_NOW_5 = hex("09000000 01 00 0000 05000000 00000000 03 6E6F77 80");
const REPLY_1 = hex("01000000 03 00 0000 01000000 C0");
const REPLY_3 = hex("01000000 03 00 0000 03000000 C0");
const REPLY_5 = hex("01000000 03 00 0000 05000000 C0");

async function fails(promise, code, message = /(?:)/) {
  const error = await promise.then(
    (result) => assert.fail(`${code} was due, ${JSON.stringify(result)} came`),
    (reason) => reason,
  );
  assert.ok(error instanceof CallError, error.stack);
  assert.equal(error.code, code, error.message);
  assert.match(error.message, message);
  return error;
}

/** A server for one connection: reads what is expected and no more, then sends its answer; and so on, to the end. */
async function scripted(steps, check, cut = Infinity) {
  const script = async (socket) => {
    const input = socket[Symbol.asyncIterator]();
    let received = Buffer.alloc(0);
    for (const [expected, answer] of steps) {
      while (received.length < expected.length) {
        const { value, done } = await input.next();
        assert.ok(!done, `closed after ${received.toString("hex")}`);
        received = Buffer.concat([received, value]);
      }
      assert.equal(received.toString("hex"), expected.toString("hex"));
      received = Buffer.alloc(0);
      for (let at = 0; at < answer.length; at += cut) {
        socket.write(answer.subarray(at, at + cut));
        if (cut < answer.length) await new Promise(setImmediate);
      }
    }
    const { done } = await input.next();
    assert.ok(done, "the client sent more");
  };
  const server = net.createServer().listen(`${path}.scripted`);
  await once(server, "listening");
  const ran = once(server, "connection").then(([socket]) => script(socket));
  await Promise.all([ran, connect(`${path}.scripted`).then(check)]);
  await new Promise((resolve) => server.close(resolve));
}

const frames = {
  "values are encoded in the shortest way"() {
    const encoded = (value, bytes) => assert.equal(encode(value).toString("hex"), hex(bytes).toString("hex"));
    for (const [value, bytes] of [
      [0, "00"], [127, "7F"], [128, "CC80"], [255, "CCFF"], [256, "CD0100"], [65536, "CE00010000"],
      [2 ** 32, "CF0000000100000000"], [2n ** 64n - 1n, "CFFFFFFFFFFFFFFFFF"], [-1, "FF"], [-32, "E0"], [-33, "D0DF"],
      [-128, "D080"], [-129, "D1FF7F"], [-32769, "D2FFFF7FFF"], [-(2n ** 63n), "D38000000000000000"],
      [1.5, "CB3FF8000000000000"], [-0, "CB8000000000000000"], [null, "C0"], [false, "C2"], [true, "C3"],
      ["zone", "A47A6F6E65"], [Buffer.from([7]), "C40107"], [[1, []], "920190"], [{ a: { b: 1 } }, "81A16181A16201"],
      [new Map([[1, 2]]), "810102"], [new Extension(5, Buffer.from([9])), "D40509"],
      [new Date(1694498816500), "C70CFF1DCD65000000000065000000"], [new Date(-1000), "C70CFF00000000FFFFFFFFFFFFFFFF"],
    ]) {
      encoded(value, bytes);
      assert.deepEqual(decode(hex(bytes)), value);
    }
    for (const length of [31, 32, 255, 256, 65535, 65536]) {
      for (const value of ["x".repeat(length), Buffer.alloc(length), Array(length).fill(1)])
        assert.deepEqual(decode(encode(value)), value);
      const map = Object.fromEntries(Array.from({ length }, (_, position) => [`k${position}`, position]));
      assert.deepEqual(decode(encode(map)), map);
    }
    assert.deepEqual(decode(hex("CA3FC00000")), 1.5);
    assert.deepEqual(decode(hex("D6FFFFFFFFFF")), new Date(4294967295000));
    assert.deepEqual(decode(hex("D7FF7735940165000000")), new Date(1694498816500 + 2 ** 32 * 1000));
    const deep = (depth) => "91".repeat(depth) + "01";
    for (const bytes of ["", "C1", "A261", "9201", "0101", "A1FF", "DDFFFFFFFF", "D7FFEE6B280065000000", deep(65)])
      assert.throws(() => decode(hex(bytes)), undefined, bytes);
    decode(hex(deep(64)));
  },

  async "every kind of value comes back"() {
    const client = await connect(path);
    for (const [method, value] of [
      ["text", "hé 😀\0"], ["text", "x".repeat(70000)], ["whole", 0], ["whole", -129], ["whole", 2 ** 40],
      ["whole", 2n ** 64n - 1n], ["whole", -(2n ** 63n)], ["ratio", 1.5], ["ratio", 1], ["ratio", -0], ["ratio", 1e300],
      ["data", Buffer.from([0, 255, 10])], ["flags", null], ["flags", true], ["numbers", [1, -2, 3]], ["numbers", []],
      ["tree", { a: ["x", null], "": [], "ü": ["y"] }], ["moment", new Date("2023-09-12T06:06:56Z")],
      ["moment", new Date("1960-01-01T00:00:00.125Z")], ["moment", new Date("9999-12-31T23:59:59.999Z")],
    ]) {
      assert.deepEqual(await client.call(method, { value }), value);
      assert.deepEqual(await client.call(method, [value]), value);
    }
    assert.equal(await client.call("repeat", { piece: "ab" }), "abab");
    assert.equal(await client.call("repeat", ["ab", 3]), "ababab");
    assert.deepEqual(await client.call("who"), [process.pid, process.geteuid()]);
    await client.close();
  },

  async "errors have code, message, id and data"() {
    const client = await connect(path);
    const said = await fails(client.call("lookup", { key: "k" }), "node.no_such_key", /^there is no k$/);
    assert.deepEqual([said.id, said.data], ["", { key: "k", known: [1, 2.5, null] }]);
    const broken = await fails(client.call("broken"), "internal", /^(?!.*secret)/);
    assert.match(broken.id, /^[!-~]+$/);
    await fails(client.call("nothing"), "method_not_found", /nothing/);
    await fails(client.call("forbidden"), "not_permitted");
    await fails(client.call("text", { value: 5 }), "invalid_arguments", /^\$\.value: expected str, got int$/);
    await fails(client.call("text", { value: "x", more: 1 }), "invalid_arguments", /more/);
    await fails(client.call("text"), "invalid_arguments", /value/);
    await fails(client.call("text", "x"), "invalid_arguments");
    const nested = (depth) => (depth === 0 ? 1 : [nested(depth - 1)]);
    assert.deepEqual(await client.call("nested", [nested(63)]), nested(63)); // the array of arguments is the 64th
    await fails(client.call("nested", [nested(64)]), "invalid_arguments", /64/);
    assert.equal(await client.call("text", ["the connection lives"]), "the connection lives");
    assert.throws(() => client.notify(""), RangeError);
    await client.close();
  },

  async "a thousand calls at once, each with its own answer"() {
    const client = await connect(path);
    const values = Array.from({ length: 1000 }, (_, value) => value);
    const answers = await Promise.all(values.map((value) => client.call("slow", [(value % 7) / 1000, value])));
    assert.deepEqual(answers, values); // the server answers `busy` to more than 256 at a time
    assert.ok((await client.call("counts")).most > 1);
    await client.close();
  },

  async "cancelling stops the work, and the connection lives"() {
    const client = await connect(path);
    const before = (await client.call("counts")).cancelled ?? 0;
    const controller = new AbortController();
    const cancelled = client.call("slow", [60], { signal: controller.signal });
    await client.call("text", ["so that it has begun"]);
    controller.abort();
    await fails(cancelled, "cancelled");
    await fails(client.call("slow", [60], { signal: AbortSignal.abort() }), "cancelled");
    await fails(client.call("slow", [60], { timeoutMs: 20 }), "deadline_exceeded");
    await fails(client.call("slow", [60], { timeoutMs: 0 }), "deadline_exceeded");
    const all = new AbortController();
    setMaxListeners(256, all.signal);
    const fill = () => fails(client.call("slow", [60], { signal: all.signal }), "cancelled");
    const full = Array.from({ length: 256 }, fill);
    await fails(client.call("slow", [60], { timeoutMs: 20 }), "deadline_exceeded"); // it was never sent
    all.abort();
    await Promise.all(full);
    let after;
    do after = (await client.call("counts", {}, { timeoutMs: 5000 })).cancelled;
    while (after < before + 2 + 256);
    assert.equal(after, before + 2 + 256);
    await client.close();
  },

  async "notifications are done, and not answered"() {
    const client = await connect(path);
    client.notify("note", ["one"]);
    client.notify("note", { words: "two" });
    client.notify("nothing");
    client.notify("note", [3]);
    let noted;
    do noted = await client.call("noted");
    while (noted.length < 2);
    assert.deepEqual(noted, ["one", "two"]);
    await client.close();
    assert.throws(() => client.notify("note", ["three"]), CallError);
  },

  async "three million bytes there and back, and no more than fit"() {
    const client = await connect(path);
    const bytes = Buffer.alloc(3_000_000, "samehost");
    const [first, second] = await Promise.all([client.call("data", [bytes]), client.call("data", [bytes])]);
    assert.ok(bytes.equals(first) && bytes.equals(second));
    await fails(client.call("data", [Buffer.alloc(4194304)]), "too_large");
    await fails(client.call("repeat", ["x", 4194304]), "too_large");
    assert.equal(await client.call("text", ["x"]), "x");
    await client.close();
  },

  async "a server that speaks another version"() {
    const refused = hex("F5534850 00001C00 02030000 00000000 00000000 00000000 00000000");
    await scripted([[Buffer.concat([CLIENT_PREFACE, CALL_NOW_1]), refused]], async (client) => {
      await fails(client.call("now"), "version_refused", /2, 3.* 1$/);
      await client.closed;
      await fails(client.call("now"), "draining");
    });
    const socket = net.connect(path); // and the real one, asked for version 2
    socket.write(hex("F5534850 02001C00 02010000 00000000 00000000 00004000 00000000"));
    const answer = Buffer.concat(await socket.toArray());
    const only1 = hex("F5534850 00001C00 01000000 00000000 00000000 00000000 00000000");
    assert.equal(answer.toString("hex"), only1.toString("hex"));
  },

  async "what a client skips, and PING, cut into single bytes"() {
    const answer = Buffer.concat([
      PREFACE,
      hex("04000000 10 00 0000 00000000 2A000000"), // PING
      hex("0E000000 0A 00 0000 01000000 82A4646F6E6501A5746F74616C04"), // NOTE
      hex("03000000 90 01 0000 07000000 010203"), // may be ignored
      hex("00000000 FF F0 0000 00000000"),
      hex("04000000 11 F0 0000 00000000 2A000000"), // PONG, with flags that may be ignored
      REPLY_1,
      REPLY_1, // late
    ]);
    const pong = hex("04000000 11 00 0000 00000000 2A000000");
    const steps = [
      [Buffer.concat([CLIENT_PREFACE, CALL_NOW_1]), answer],
      [Buffer.concat([pong, CALL_NOW_3]), REPLY_3],
    ];
    const check = async (client) => {
      assert.equal(await client.call("now"), null);
      assert.equal(await client.call("now"), null);
      await client.close();
    };
    await scripted(steps, check, 1);
  },

  async "a preface that is longer, and a server that takes one call"() {
    const longer = hex("F5534850 01002000 01000000 00000000 FFFFFFFF 00000100 01000000 DEADBEEF");
    const steps = [
      [Buffer.concat([CLIENT_PREFACE, CALL_NOW_1]), Buffer.concat([longer, REPLY_1])],
      [CALL_NOW_3, REPLY_3],
      [CALL_NOW_5, REPLY_5],
    ];
    await scripted(steps, async (client) => {
      await client.call("now");
      assert.deepEqual(await Promise.all([client.call("now"), client.call("now")]), [null, null]);
      await fails(client.call("now", [Buffer.alloc(65536)]), "too_large");
      await client.close();
    });
  },

  async "GOAWAY: calls up to the one it names are answered, the others were never made"() {
    const goAway = hex("17000000 12 00 0000 00000000 01000000 08000700 647261696E696E67 72657374617274");
    const early = [Buffer.concat([CLIENT_PREFACE, CALL_NOW_1, CALL_NOW_3]), Buffer.concat([PREFACE, goAway, REPLY_1])];
    await scripted([early], async (client) => {
      const both = [client.call("now"), fails(client.call("now"), "draining", /restart/)];
      assert.equal((await Promise.all(both))[0], null);
      await fails(client.call("now"), "draining");
      await client.closed;
    });
  },

  async "GOAWAY: calls that wait for others to end are never sent"() {
    const takesTwo = hex("F5534850 01001C00 01000000 00000000 00000000 00004000 02000000");
    const goAway = hex("10000000 12 00 0000 00000000 05000000 08000000 647261696E696E67");
    const steps = [
      [Buffer.concat([CLIENT_PREFACE, CALL_NOW_1]), Buffer.concat([takesTwo, REPLY_1])],
      [Buffer.concat([CALL_NOW_3, CALL_NOW_5]), Buffer.concat([goAway, REPLY_3, REPLY_5])],
    ];
    await scripted(steps, async (client) => {
      await client.call("now");
      const three = [client.call("now"), client.call("now"), fails(client.call("now"), "draining")];
      assert.deepEqual((await Promise.all(three)).slice(0, 2), [null, null]);
      await client.closed;
    });
  },

  async "the server's end: the outcome of calls is unknown"() {
    const server = net.createServer((socket) => socket.once("data", () => socket.end(PREFACE)));
    await once(server.listen(`${path}.ending`), "listening");
    const client = await connect(`${path}.ending`);
    await fails(client.call("now"), "unavailable");
    await client.closed;
    server.close();
  },

  async "faults end the connection with a GOAWAY"() {
    for (const [fault, code] of [
      ["00000000 30 00 0000 00000000", "protocol_error"], // a type that nobody knows
      ["09000000 01 00 0000 02000000 00000000 03 6E6F77 80", "protocol_error"], // we take no calls
      ["01004000 03 00 0000 01000000 C0", "too_large"],
      ["01000000 03 08 0000 01000000 C0", "protocol_error"], // a flag that we would have to know
      ["01000000 03 00 0000 05000000 C0", "protocol_error"], // call 5 was never made
      ["01000000 03 00 0000 02000000 C0", "protocol_error"], // nor a call of the server's
      ["01000000 03 00 0100 01000000 C0", "unexpected_descriptors"],
      ["00000000 06 00 0000 01000000", "protocol_error"], // STREAM
      ["04000000 10 00 0000 01000000 2A000000", "protocol_error"], // a PING with an id
      ["05000000 04 00 0000 01000000 01000100 61", "protocol_error"], // an ERROR shorter than it says
      ["09000000 12 00 0000 00000000 05000000 01000000 61", "protocol_error"], // GOAWAY naming call 5
    ]) {
      const head = Buffer.concat([CLIENT_PREFACE, CALL_NOW_1]);
      let received = Buffer.alloc(0);
      const server = net.createServer((socket) => {
        socket.on("data", (bytes) => {
          received = Buffer.concat([received, bytes]);
          if (received.equals(head)) socket.write(Buffer.concat([PREFACE, hex(fault)]));
        });
      });
      await once(server.listen(`${path}.faulty`), "listening");
      const client = await connect(`${path}.faulty`);
      await fails(client.call("now"), "unavailable");
      await client.closed;
      await new Promise((resolve) => server.close(resolve));
      const goAway = received.subarray(head.length);
      assert.equal(goAway[4], 0x12, fault);
      assert.equal(goAway.readUInt32LE(0), goAway.length - 12, fault);
      assert.equal(goAway.toString("latin1", 20, 20 + goAway[16]), code, fault);
    }
  },
};

const jsonLines = {
  async "JSON lines: results, errors, many at once"() {
    const client = lines.connect(path);
    assert.equal(await client.call("text", { value: "hé 😀" }), "hé 😀");
    assert.deepEqual(await client.call("tree", [{ a: ["x", null] }]), { a: ["x", null] });
    assert.equal(await client.call("moment", ["2023-09-12T06:06:56Z"]), "2023-09-12T06:06:56Z");
    const said = await fails(client.call("lookup", ["k"]), "node.no_such_key", /^there is no k$/);
    assert.deepEqual(said.data, { key: "k", known: [1, 2.5, null] });
    await fails(client.call("nothing"), "method_not_found");
    await fails(client.call("text", [5]), "invalid_arguments", /expected str, got int/);
    await fails(client.call("slow", [60], { timeoutMs: 20 }), "deadline_exceeded");
    const values = Array.from({ length: 200 }, (_, value) => value);
    const answers = await Promise.all(values.map((value) => client.call("slow", [(value % 7) / 1000, value])));
    assert.deepEqual(answers, values);
    client.notify("note", ["in a line"]);
    let noted;
    do noted = await client.call("noted");
    while (!noted.includes("in a line"));
    client.close();
    await client.closed;
  },
};

const draining = {
  async "draining: a running call is answered, new ones are said to be unsent"() {
    const client = await connect(path);
    const inLines = lines.connect(path);
    const idle = await connect(path);
    const running = client.call("slow", [1, 7]);
    const runningInLines = inLines.call("slow", [1, 8]);
    await Promise.all([client.call("text", ["x"]), inLines.call("text", ["x"]), idle.call("text", ["x"])]);
    process.kill(Number(pid), "SIGTERM");
    for (const call of [() => client.call("text", ["x"]), () => inLines.call("text", ["x"])]) {
      let refused = null;
      while (refused === null) await call().catch((error) => (refused = error));
      assert.equal(refused.code, "draining", refused.message);
    }
    await idle.closed;
    await fails(idle.call("text", ["x"]), "draining");
    assert.deepEqual(await Promise.all([running, runningInLines]), [7, 8]);
    await Promise.all([client.closed, inLines.closed]);
  },
};

function fail(name, why) {
  console.error(`${name}: ${why}`);
  process.exit(1);
}

for (const [name, check] of Object.entries({ ...frames, ...jsonLines, ...draining })) {
  const timer = setTimeout(() => fail(name, "still not done"), DEADLINE_MS);
  try {
    await check();
  } catch (error) {
    fail(name, error.stack);
  }
  clearTimeout(timer);
}
