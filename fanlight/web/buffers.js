// Memory of chunks, used again and again. What a browser's API has once seen (a hash, a response, a
// reader) is given back by the garbage collector only, and that one doesn't see how large it is:
// with fresh memory for each chunk a download of 100 MB left 200 MB behind. Knows no files.

/** Bytes of a chunk. */
export const CHUNK = 2 << 20;
const KEPT = 3;
const COLLECT_EVERY = 64 << 20;
let passed = 0;

/** @type {Set<ArrayBuffer>} */
const spare = new Set();

/**
 * Lets the garbage collector know of bytes that went by: streams, requests and texts leave more
 * behind than their objects' sizes say, so it runs too seldom (838 MB downloaded left 20 MB, now 2).
 * What it does see is memory that is asked for; this is never touched, and given back at once.
 * @param {number} bytes
 */
export function tellCollector(bytes) {
  passed += bytes;
  if (passed < COLLECT_EVERY) return;
  passed = 0;
  try {
    new ArrayBuffer(2 * COLLECT_EVERY).transfer?.(0);
  } catch {
    // so much is not there even as an address: the collector runs often enough
  }
}

/**
 * Memory of `length` bytes, with anything in it; the caller owns it until `free`.
 * @param {number} length at most CHUNK to come from the spare
 * @returns {Uint8Array<ArrayBuffer>}
 */
export function take(length) {
  tellCollector(length);
  if (length > CHUNK) return new Uint8Array(length);
  const [buffer = new ArrayBuffer(CHUNK)] = spare;
  spare.delete(buffer);
  return new Uint8Array(buffer, 0, length);
}

/**
 * Takes memory back from its owner; what went elsewhere, or is no chunk's, is left alone.
 * @param {Uint8Array<ArrayBuffer>} bytes
 */
export function free({ buffer }) {
  if (buffer.byteLength === CHUNK && spare.size < KEPT) spare.add(buffer);
  else if (buffer.byteLength > 0) buffer.transfer?.(0);
}

/**
 * One read of a byte stream into `bytes[from, to)`: at least `least` bytes where the browser knows
 * how to wait for them. The stream takes the memory and gives it back.
 * @param {ReadableStreamBYOBReader} reader
 * @param {Uint8Array<ArrayBuffer>} bytes
 * @param {number} from
 * @param {number} to
 * @param {number} least
 * @returns {Promise<{bytes: Uint8Array<ArrayBuffer>, count: number}>} the memory; 0 at the end
 */
export async function readInto(reader, bytes, from, to, least) {
  const { byteOffset, length } = bytes;
  const view = new Uint8Array(bytes.buffer, byteOffset + from, to - from);
  const { done, value } = await reader.read(view, { min: Math.min(least, to - from) });
  if (!value) throw new DOMException('the stream was cancelled', 'AbortError');
  return {
    bytes: new Uint8Array(/** @type {ArrayBuffer} */ (value.buffer), byteOffset, length),
    count: done ? 0 : value.length,
  };
}
