// The layout of a file in Cache Storage: an index and one entry for each chunk, hashed. Knows
// nothing of the network. A changed layout gets a new number in CACHE, PREFIX and LAYOUT.

import { CHUNK, free, readInto, take } from './buffers.js';
import { InputError } from './errors.js';

/**
 * @typedef {object} Index
 * @property {1} layout
 * @property {string} url
 * @property {number | null} size null until the end where the server does not say
 * @property {string} etag
 * @property {string} lastModified
 * @property {number} chunk_bytes
 * @property {(string | null)[]} chunks SHA-256 in hex of each chunk that landed
 * @property {boolean} complete
 * @property {number} last_used ms since 1970
 */

const LAYOUT = 1;
const CACHE = 'fanlight-store-v1';
const PREFIX = '/.fanlight/store/v1/';

/** Whether this page has a place to keep files: Cache Storage and hashes need a secure context. */
export function canKeep() {
  return typeof caches !== 'undefined' && crypto.subtle !== undefined;
}

/** @param {Uint8Array<ArrayBuffer>} bytes */
async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/** The place of one file. */
export class Shelf {
  /** @param {Cache} cache @param {string} folder */
  constructor(cache, folder) {
    this.cache = cache;
    this.folder = folder;
  }

  /** @param {string} url @returns {Promise<Shelf>} */
  static async open(url) {
    const name = await sha256(new TextEncoder().encode(url));
    return new Shelf(await caches.open(CACHE), `${self.origin}${PREFIX}${name}`);
  }

  /** The index, or null where there is none of this layout. @returns {Promise<Index | null>} */
  async index() {
    const response = await this.cache.match(`${this.folder}/index`);
    const index = await response?.json().catch(() => null);
    return index?.layout === LAYOUT && index.chunk_bytes === CHUNK ? index : null;
  }

  /** @param {Index} index */
  async write(index) {
    await this.cache.put(`${this.folder}/index`, Response.json(index));
  }

  /**
   * Keeps a chunk; returns its hash. Throws QuotaExceededError.
   * @param {number} n
   * @param {Uint8Array<ArrayBuffer>} bytes
   */
  async put(n, bytes) {
    const hash = await sha256(bytes);
    await this.cache.put(`${this.folder}/chunk/${n}`, new Response(bytes));
    return hash;
  }

  /**
   * Chunk `n`, or null where it is missing or not what `hash` says.
   * @param {number} n
   * @param {string} hash
   * @returns {Promise<Uint8Array<ArrayBuffer> | null>} */
  async take(n, hash) {
    const response = await this.cache.match(`${this.folder}/chunk/${n}`);
    if (!response) return null;
    const bytes = await bodyOf(response);
    if ((await sha256(bytes)) === hash) return bytes;
    free(bytes);
    return null;
  }

  /** Forgets the file, the index first. */
  async clear() {
    await this.cache.delete(`${this.folder}/index`);
    for (const request of await this.cache.keys()) {
      if (request.url.startsWith(`${this.folder}/`)) await this.cache.delete(request);
    }
  }
}

/**
 * @param {string} url
 * @param {{size: number | null, etag: string, lastModified: string}} answer
 * @returns {Index}
 */
export function newIndex(url, { size, etag, lastModified }) {
  const chunks = new Array(size === null ? 0 : Math.ceil(size / CHUNK)).fill(null);
  return {
    layout: LAYOUT,
    url,
    size,
    etag,
    lastModified,
    chunk_bytes: CHUNK,
    chunks,
    complete: false,
    last_used: Date.now(),
  };
}

/** All indexes. @returns {Promise<Index[]>} */
export async function indexes() {
  const cache = await caches.open(CACHE);
  const found = [];
  for (const request of await cache.keys()) {
    if (!request.url.endsWith('/index')) continue;
    found.push(await new Shelf(cache, request.url.slice(0, -'/index'.length)).index());
  }
  return found.filter((index) => index !== null);
}

export async function forgetAll() {
  await caches.delete(CACHE);
}

/** The first CHUNK bytes of a body. @param {Response} response */
async function bodyOf(response) {
  let bytes = take(CHUNK);
  let filled = 0;
  let reader;
  try {
    reader = response.body?.getReader({ mode: 'byob' });
  } catch {
    // a browser without byte streams
  }
  if (!reader) return new Uint8Array(await response.arrayBuffer());
  while (filled < CHUNK) {
    const got = await readInto(reader, bytes, filled, CHUNK);
    bytes = got.bytes;
    filled += got.count;
    if (!got.count) break;
  }
  await reader.cancel();
  return bytes.subarray(0, filled);
}

/** Cuts `[offset, offset + length)` at chunks. @param {number} offset @param {number} length
 * @returns {Generator<{n: number, from: number, to: number}, void, void>} */
export function* parts(offset, length) {
  for (let at = offset; at < offset + length;) {
    const n = Math.floor(at / CHUNK);
    const to = Math.min(offset + length, (n + 1) * CHUNK);
    yield { n, from: at - n * CHUNK, to: to - n * CHUNK };
    at = to;
  }
}

/** Throws InputError unless the bytes lie in the file. @param {{size: number, name: string}} file
 * @param {number} offset @param {number} length */
export function checkSpan({ size, name }, offset, length) {
  if (offset >= 0 && length >= 0 && offset + length <= size) return;
  throw new InputError('bytes outside the file', {
    where: name,
    got: `${offset} + ${length}`,
    wanted: `within ${size}`,
  });
}
