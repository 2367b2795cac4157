// A client of samehost's protocol, version 1, written from docs/PROTOCOL.md alone, with nothing but Node's standard
// library: frames over a UNIX socket, and a MessagePack of its own. It makes calls and notifications, many at a time,
// with deadlines and cancelling. It leaves out streams (calls go without ITEMS_WANTED), files (Node cannot receive
// descriptors), contexts, the progress that NOTE tells, calls from the server, and connecting again.
//
//     const client = await connect(path);
//     await client.call("now", { zone: "UTC" }, { timeoutMs: 500 });
//     client.notify("log", ["hi"]);
//     await client.close();

import net from "node:net";

const [CALL, NOTIFY, REPLY, ERROR, CANCEL, STREAM, ITEM] = [1, 2, 3, 4, 5, 6, 7];
const [CREDIT, NOTE, PING, PONG, GOAWAY, IGNORABLE] = [0x09, 0x0a, 0x10, 0x11, 0x12, 0x80];
const MUST_KNOW_FLAGS = 0x0f;

const MAGIC = Buffer.from([0xf5, 0x53, 0x48, 0x50]);
const VERSION = 1;
const PREFACE_BYTES = 28;
const HEADER_BYTES = 12;
const PAYLOAD_BYTES_MAX = 4194304; // what we take, and what the server does until it has said otherwise
const CALLS_MAX = 256; // what the server takes until it has said otherwise
const DEPTH_MAX = 64;
const TIMER_MS_MAX = 2 ** 31 - 1;

// What a server may send us: the least and the most bytes of the payload, and whether the frame has the id of a call.
const RULES = {
  [REPLY]: [1, PAYLOAD_BYTES_MAX, true],
  [ERROR]: [5, PAYLOAD_BYTES_MAX, true],
  [STREAM]: [0, 0, true],
  [ITEM]: [1, PAYLOAD_BYTES_MAX, true],
  [CREDIT]: [8, 8, true],
  [NOTE]: [1, 65536, true],
  [PING]: [4, 4, false],
  [PONG]: [4, 4, false],
  [GOAWAY]: [9, 4168, false],
};

/**
 * A call that failed. `code` is one of section 12 or the service's own; `id` finds the error in the server's log.
 * Nothing was done if it is `draining` or `busy`; with `unavailable` the outcome is unknown; `invalid_result` is
 * our own, for a result that is not MessagePack.
 */
export class CallError extends Error {
  constructor(code, message, id = "", data = undefined) {
    super(message);
    Object.assign(this, { name: "CallError", code, id, data });
  }
}

/** A value of MessagePack that JavaScript has no type for. */
export class Extension {
  constructor(type, bytes) {
    Object.assign(this, { type, bytes });
  }
}

/** The server did what the protocol does not allow. */
class Fault extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

/** Connect to the UNIX socket at `path`. Waits for no answer: a server that refuses us fails the first calls. */
export function connect(path) {
  return new Promise((resolve, reject) => {
    const socket = net.connect(path);
    socket.once("error", reject);
    socket.once("connect", () => {
      socket.off("error", reject);
      resolve(new Client(socket));
    });
  });
}

class Client {
  #socket;
  #chunks;
  #received = []; // chunks of input that are not used up
  #receivedBytes = 0;
  #open = new Map(); // by id, what the server has not ended, whether somebody still waits for it or not
  #waiting = new Set(); // calls that are not sent, because the server has enough
  #last = -1; // the id of our last call
  #greeted = false;
  #over = null; // why there are no more calls
  #callsMax = CALLS_MAX;
  #payloadMax = PAYLOAD_BYTES_MAX;

  constructor(socket) {
    this.#socket = socket;
    this.#chunks = socket[Symbol.asyncIterator]();
    this.closed = new Promise((resolve) => socket.once("close", resolve));
    socket.on("error", () => {}); // the iterator throws it, too
    socket.write(preface());
    this.#read();
  }

  /** Call a method, with an object or an array of arguments. An AbortSignal as `signal` can cancel the call. */
  call(method, args = {}, { timeoutMs = Infinity, signal } = {}) {
    return new Promise((resolve, reject) => {
      const payload = this.#callPayload(method, args);
      const call = { id: 0, payload, ends: performance.now() + timeoutMs };
      const expire = () => this.#stop(call, "deadline_exceeded");
      const cancel = () => this.#stop(call, "cancelled");
      const timer = timeoutMs <= TIMER_MS_MAX ? setTimeout(expire, timeoutMs) : undefined;
      const settle = (how) => (value) => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", cancel);
        how(value);
      };
      Object.assign(call, { resolve: settle(resolve), reject: settle(reject) });
      this.#waiting.add(call);
      signal?.addEventListener("abort", cancel);
      if (signal?.aborted) cancel();
      this.#sendWaiting();
    });
  }

  /** Call a method without an answer. It is sent at once, or a CallError is thrown. */
  notify(method, args = {}) {
    this.#send(NOTIFY, 0, this.#callPayload(method, args));
  }

  /** Close the connection once everything sent is with the kernel. Calls that are open are cancelled. */
  async close() {
    this.#giveUp("the client was closed", "cancelled");
    await this.closed;
  }

  // Sending

  #send(type, id, payload = Buffer.alloc(0)) {
    const header = Buffer.alloc(HEADER_BYTES);
    header.writeUInt32LE(payload.length, 0);
    header[4] = type;
    header.writeUInt32LE(id, 8);
    if (this.#socket.writable) this.#socket.write(Buffer.concat([header, payload]));
  }

  /** The payload of a CALL or NOTIFY, without a deadline so far. */
  #callPayload(method, args) {
    const name = Buffer.from(method);
    if (!inside(name.length, 1, 255)) throw new RangeError("a method's name has 1 to 255 bytes");
    const payload = Buffer.concat([Buffer.from([0, 0, 0, 0, name.length]), name, encode(args)]);
    const most = this.#payloadMax;
    if (payload.length > most) throw new CallError("too_large", `${payload.length} bytes, at most ${most} travel`);
    if (this.#over) throw new CallError("draining", `not sent: ${this.#over}`);
    return payload;
  }

  #sendWaiting() {
    for (const call of this.#waiting) {
      const left = call.ends - performance.now();
      if (left <= 0) {
        this.#stop(call, "deadline_exceeded");
        continue;
      }
      if (this.#open.size >= this.#callsMax) return;
      this.#waiting.delete(call);
      do this.#last = (this.#last + 2) >>> 0;
      while (this.#open.has(this.#last));
      call.id = this.#last;
      this.#open.set(call.id, call);
      call.payload.writeUInt32LE(left === Infinity ? 0 : Math.min(Math.ceil(left), 0xffffffff), 0);
      this.#send(CALL, call.id, call.payload);
      call.payload = null;
    }
  }

  /** End a call for our program. The server is told, and the call counts until it has answered. */
  #stop(call, code) {
    const isOpen = this.#open.get(call.id) === call && !call.cancelled;
    if (!this.#waiting.delete(call) && !isOpen) return;
    if (isOpen) this.#send(CANCEL, call.id);
    call.cancelled = true;
    call.reject(new CallError(code, code));
  }

  /** Make no more calls, and let those go that the server says or must have left alone. */
  #leave(why, isUnsent) {
    this.#over ??= why;
    const unsent = new CallError("draining", `not sent: ${why}`);
    for (const call of this.#waiting) call.reject(unsent);
    this.#waiting.clear();
    for (const call of this.#open.values()) {
      if (!isUnsent(call.id)) continue;
      this.#open.delete(call.id);
      call.reject(unsent);
    }
  }

  #giveUp(why, code) {
    this.#leave(why, () => false);
    for (const call of this.#open.values()) call.reject(new CallError(code, this.#over));
    this.#open.clear();
    this.#socket.end(() => this.#socket.destroy());
  }

  // Receiving

  async #read() {
    try {
      await this.#readPreface();
      for (;;) {
        const header = await this.#take(HEADER_BYTES, true);
        if (header === null) break;
        const [type, id] = checkHeader(header);
        this.#handle(type, id, await this.#take(header.readUInt32LE(0)));
      }
      this.#giveUp("the server closed the connection", "unavailable");
    } catch (error) {
      if (error instanceof Fault && this.#greeted) this.#send(GOAWAY, 0, goAwayPayload(error));
      this.#giveUp(error.message, error.code === "version_refused" ? error.code : "unavailable");
    }
  }

  async #readPreface() {
    const start = await this.#take(16);
    const [version, length] = [start[4], start.readUInt16LE(6)];
    if (!start.subarray(0, 4).equals(MAGIC)) throw new Fault("protocol_error", "the server does not speak samehost");
    if (length < PREFACE_BYTES || length > 256) throw new Fault("protocol_error", `a preface of ${length} bytes`);
    if (version === 0) {
      const spoken = [...start.subarray(8)].filter(Boolean).join(", ");
      throw new Fault("version_refused", `the server speaks version ${spoken}, this client version ${VERSION}`);
    }
    if (version !== VERSION) throw new Fault("protocol_error", `the server answered in version ${version}`);
    const rest = await this.#take(length - 16);
    this.#payloadMax = rest.readUInt32LE(4);
    this.#callsMax = rest.readUInt32LE(8);
    this.#greeted = true;
    if (this.#callsMax === 0) this.#leave("the server takes no calls", () => false);
    this.#sendWaiting();
  }

  /** The next bytes of the input; null at its end, if it `mayEnd` here. */
  async #take(length, mayEnd = false) {
    while (this.#receivedBytes < length) {
      const { value, done } = await this.#chunks.next();
      if (done && mayEnd && this.#receivedBytes === 0) return null;
      if (done) throw new Fault("protocol_error", "the server's output ended early");
      this.#received.push(value);
      this.#receivedBytes += value.length;
    }
    const all = this.#received.length === 1 ? this.#received[0] : Buffer.concat(this.#received);
    this.#received = [all.subarray(length)];
    this.#receivedBytes -= length;
    return all.subarray(0, length);
  }

  #handle(type, id, payload) {
    if (type === PING) this.#send(PONG, 0, payload);
    else if (type === GOAWAY) this.#handleGoAway(payload);
    else if (id !== 0 && type < IGNORABLE) this.#handleAnswer(type, id, payload);
  }

  #handleAnswer(type, id, payload) {
    const call = this.#open.get(id);
    if (call === undefined) {
      if (!this.#wasGiven(id)) throw new Fault("protocol_error", `call ${id} was never made`);
      return; // it is late
    }
    if (type === NOTE) return;
    if (type !== REPLY && type !== ERROR) throw new Fault("protocol_error", "a stream that was not wanted");
    const failure = type === ERROR ? parseError(payload) : null;
    this.#open.delete(id);
    try {
      if (failure === null) call.resolve(decode(payload));
      else call.reject(new CallError(...failure.words, failure.data.length ? decode(failure.data) : undefined));
    } catch (error) {
      call.reject(new CallError("invalid_result", error.message));
    }
    this.#closeIfDone();
    this.#sendWaiting();
  }

  #handleGoAway(payload) {
    const [last, codeBytes, messageBytes] = [payload.readUInt32LE(0), payload[4], payload.readUInt16LE(6)];
    if (!inside(codeBytes, 1, 64) || messageBytes > 4096 || 8 + codeBytes + messageBytes !== payload.length)
      throw new Fault("protocol_error", "a GOAWAY whose lengths do not fit");
    if (last !== 0 && !this.#wasGiven(last)) throw new Fault("protocol_error", `GOAWAY names call ${last}`);
    const [code, message] = texts(payload, 8, [codeBytes, messageBytes]);
    this.#leave(`the server goes away: ${code} ${message}`, (id) => last === 0 || isAhead(id, last));
    this.#closeIfDone();
  }

  #closeIfDone() {
    if (this.#over && this.#open.size === 0) this.#giveUp(this.#over, "cancelled");
  }

  #wasGiven(id) {
    return id % 2 === 1 && this.#last !== -1 && !isAhead(id, this.#last);
  }
}

// Frames

const inside = (number, least, most) => number >= least && number <= most;
const isAhead = (id, last) => inside((id - last) >>> 0, 1, 2 ** 31 - 1);

function preface() {
  const bytes = Buffer.alloc(PREFACE_BYTES);
  MAGIC.copy(bytes);
  bytes[4] = VERSION;
  bytes.writeUInt16LE(PREFACE_BYTES, 6);
  bytes[8] = VERSION;
  bytes.writeUInt32LE(PAYLOAD_BYTES_MAX, 20); // the 0 behind it: we take no calls
  return bytes;
}

function goAwayPayload({ code, message }) {
  const head = Buffer.alloc(8); // no call of the server's was accepted
  head[4] = code.length;
  head.writeUInt16LE(Buffer.byteLength(message), 6);
  return Buffer.concat([head, Buffer.from(code + message)]);
}

/** The type and the id of a frame whose header is no fault. */
function checkHeader(header) {
  const [length, type, id] = [header.readUInt32LE(0), header[4], header.readUInt32LE(8)];
  const named = `a frame of type ${type}`;
  const rule = type >= IGNORABLE ? [0, 65536, id !== 0] : RULES[type];
  if (!rule) throw new Fault("protocol_error", `${named}, which a client does not take`);
  const [least, most, hasId] = rule;
  if (length > most) throw new Fault("too_large", `${named} with ${length} bytes, at most ${most} are taken`);
  if (length < least) throw new Fault("protocol_error", `${named} with ${length} bytes, it has at least ${least}`);
  if (header.readUInt16LE(6)) throw new Fault("unexpected_descriptors", `${named} with descriptors`);
  if ((id !== 0) !== hasId) throw new Fault("protocol_error", `${named} with id ${id}`);
  if (type < IGNORABLE && header[5] & MUST_KNOW_FLAGS) throw new Fault("protocol_error", `${named} with a flag`);
  return [type, id];
}

function parseError(payload) {
  const [codeBytes, idBytes, messageBytes] = [payload[0], payload[1], payload.readUInt16LE(2)];
  const end = 4 + codeBytes + idBytes + messageBytes;
  if (!inside(codeBytes, 1, 64) || idBytes > 64 || messageBytes > 4096 || end > payload.length)
    throw new Fault("protocol_error", "an ERROR whose lengths do not fit");
  const [code, id, message] = texts(payload, 4, [codeBytes, idBytes, messageBytes]);
  return { words: [code, message, id], data: payload.subarray(end) };
}

function texts(bytes, start, lengths) {
  return lengths.map((length) => bytes.toString("utf8", start, (start += length)));
}

// MessagePack

const UTF_8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

// A kind's markers: the one that holds a short length itself, the longest such, the others with the length's bytes.
const TEXT = [0xa0, 31, [0xd9, 1], [0xda, 2], [0xdb, 4]];
const BINARY = [0, -1, [0xc4, 1], [0xc5, 2], [0xc6, 4]];
const ARRAY = [0x90, 15, [0xdc, 2], [0xdd, 4]];
const MAP = [0x80, 15, [0xde, 2], [0xdf, 4]];
const EXTENSION = [0, -1, [0xc7, 1], [0xc8, 2], [0xc9, 4]];
const POSITIVE = [[0xcc, 1], [0xcd, 2], [0xce, 4], [0xcf, 8]];
const NEGATIVE = [[0xd0, 1], [0xd1, 2], [0xd2, 4], [0xd3, 8]];

/** One value as MessagePack. Whole numbers become integers, as JavaScript cannot tell them from floats. */
export function encode(value) {
  const parts = [];
  put(parts, value);
  return Buffer.concat(parts);
}

function put(parts, value) {
  if (value === null || value === undefined) parts.push(Buffer.from([0xc0]));
  else if (typeof value === "boolean") parts.push(Buffer.from([value ? 0xc3 : 0xc2]));
  else if (typeof value === "bigint") parts.push(whole(value));
  else if (Number.isSafeInteger(value) && !Object.is(value, -0)) parts.push(whole(value));
  else if (typeof value === "number") parts.push(float(value));
  else if (typeof value === "string") putBytes(parts, TEXT, Buffer.from(value));
  else if (value instanceof Uint8Array) putBytes(parts, BINARY, value);
  else if (value instanceof Date) putExtension(parts, -1, timestamp(value));
  else if (value instanceof Extension) putExtension(parts, value.type, value.bytes);
  else if (Array.isArray(value)) {
    parts.push(start(ARRAY, value.length));
    value.forEach((element) => put(parts, element));
  } else if (typeof value === "object") {
    const entries = value instanceof Map ? [...value] : Object.entries(value);
    parts.push(start(MAP, entries.length));
    entries.flat(1).forEach((element) => put(parts, element));
  } else throw new TypeError(`no value: ${typeof value}`);
}

function marked(marker, width, number) {
  const bytes = Buffer.alloc(9);
  bytes[0] = marker;
  bytes.writeBigUInt64BE(BigInt.asUintN(64, BigInt(number) << BigInt(64 - 8 * width)), 1);
  return bytes.subarray(0, 1 + width);
}

function start([marker, shortest, ...longer], length) {
  if (length <= shortest) return Buffer.from([marker | length]);
  return marked(...longer.find(([, width]) => length < 2 ** (8 * width)), length);
}

function whole(number) {
  if (inside(number, -32, 127)) return Buffer.from([Number(number) & 0xff]);
  const fits = number < 0 ? ([, width]) => number >= -(2 ** (8 * width - 1)) : ([, width]) => number < 2 ** (8 * width);
  const found = (number < 0 ? NEGATIVE : POSITIVE).find(fits);
  if (!found) throw new RangeError(`${number} has more than 64 bits`);
  return marked(...found, number);
}

function float(number) {
  const bytes = Buffer.from([0xcb, 0, 0, 0, 0, 0, 0, 0, 0]);
  bytes.writeDoubleBE(number, 1);
  return bytes;
}

function putBytes(parts, kind, bytes) {
  parts.push(start(kind, bytes.length), bytes);
}

function putExtension(parts, type, bytes) {
  const short = [1, 2, 4, 8, 16].indexOf(bytes.length);
  parts.push(short < 0 ? start(EXTENSION, bytes.length) : Buffer.from([0xd4 + short]));
  parts.push(Buffer.from([type & 0xff]), bytes);
}

function timestamp(date) {
  const seconds = Math.floor(date.getTime() / 1000);
  const bytes = Buffer.alloc(12);
  bytes.writeUInt32BE((date.getTime() - seconds * 1000) * 1e6, 0);
  bytes.writeBigInt64BE(BigInt(seconds), 4);
  return bytes;
}

/** The one value that the bytes are. Integers beyond 53 bits are bigint; a map with other keys than text is a Map. */
export function decode(bytes) {
  const reader = new Reader(bytes);
  const value = reader.value(0);
  if (reader.at !== bytes.length) throw new RangeError(`${bytes.length - reader.at} bytes behind the value`);
  return value;
}

class Reader {
  constructor(bytes) {
    this.bytes = bytes;
    this.at = 0;
  }

  value(depth) {
    const marker = this.unsigned(1);
    const width = 1 << (marker & 3); // of what follows most markers from 0xcc on
    if (marker < 0x80) return marker;
    if (marker < 0x90) return this.map(marker & 0x0f, depth + 1);
    if (marker < 0xa0) return this.array(marker & 0x0f, depth + 1);
    if (marker < 0xc0) return this.text(marker & 0x1f);
    if (marker >= 0xe0) return marker - 0x100;
    if (marker === 0xc0) return null;
    if (marker === 0xc2 || marker === 0xc3) return marker === 0xc3;
    if (inside(marker, 0xc4, 0xc6)) return this.take(this.unsigned(width));
    if (inside(marker, 0xc7, 0xc9)) return this.extension(this.unsigned(1 << (marker - 0xc7)));
    if (marker === 0xca) return this.take(4).readFloatBE();
    if (marker === 0xcb) return this.take(8).readDoubleBE();
    if (inside(marker, 0xcc, 0xcf)) return this.unsigned(width);
    if (inside(marker, 0xd0, 0xd3)) return this.signed(width);
    if (inside(marker, 0xd4, 0xd8)) return this.extension(1 << (marker - 0xd4));
    if (inside(marker, 0xd9, 0xdb)) return this.text(this.unsigned(1 << (marker - 0xd9)));
    if (inside(marker, 0xdc, 0xdd)) return this.array(this.unsigned(2 << (marker - 0xdc)), depth + 1);
    if (inside(marker, 0xde, 0xdf)) return this.map(this.unsigned(2 << (marker - 0xde)), depth + 1);
    throw new RangeError(`no value begins with ${marker}`);
  }

  take(length) {
    if (length > this.bytes.length - this.at) throw new RangeError("the value is cut off");
    return this.bytes.subarray(this.at, (this.at += length));
  }

  unsigned(width) {
    return width < 8 ? this.take(width).readUIntBE(0, width) : narrow(this.take(8).readBigUInt64BE());
  }

  signed(width) {
    return width < 8 ? this.take(width).readIntBE(0, width) : narrow(this.take(8).readBigInt64BE());
  }

  text(length) {
    return UTF_8.decode(this.take(length));
  }

  array(length, depth) {
    if (depth > DEPTH_MAX) throw new RangeError(`nested more than ${DEPTH_MAX} deep`);
    const elements = []; // its length is only a claim: nothing is set aside for it
    while (elements.length < length) elements.push(this.value(depth));
    return elements;
  }

  map(length, depth) {
    const flat = this.array(2 * length, depth);
    const entries = Array.from({ length }, (_, position) => flat.slice(2 * position, 2 * position + 2));
    return entries.every(([key]) => typeof key === "string") ? Object.fromEntries(entries) : new Map(entries);
  }

  extension(length) {
    const type = this.signed(1);
    const bytes = this.take(length);
    return type === -1 ? time(bytes) : new Extension(type, bytes);
  }
}

const narrow = (number) => (Number.isSafeInteger(Number(number)) ? Number(number) : number);

/** A time as a Date, which keeps milliseconds of the nanoseconds. */
function time(bytes) {
  const parts = {
    4: () => [0, bytes.readUInt32BE()],
    8: () => [bytes.readUInt32BE() >>> 2, (bytes[3] & 3) * 2 ** 32 + bytes.readUInt32BE(4)],
    12: () => [bytes.readUInt32BE(), Number(bytes.readBigInt64BE(4))],
  };
  const [nanoseconds, seconds] = parts[bytes.length]?.() ?? [Infinity];
  const date = new Date(seconds * 1000 + Math.floor(nanoseconds / 1e6));
  if (nanoseconds > 999999999 || Number.isNaN(date.getTime())) throw new RangeError("not a time");
  return date;
}
