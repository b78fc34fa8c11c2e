// The layout of a file that is kept: an index in Cache Storage, where a write is whole or nothing,
// and each chunk, hashed, as a file of the origin's private file system, which workers read straight
// into memory that they own. Knows nothing of the network. A changed layout gets a new number in NAME
// and LAYOUT.

import { CHUNK, free, take } from './buffers.js';
import { InputError } from './errors.js';

/**
 * @typedef {object} Index
 * @property {2} layout
 * @property {string} url
 * @property {number | null} size null until the end where the server does not say
 * @property {string} etag
 * @property {string} lastModified
 * @property {number} chunk_bytes
 * @property {(string | null)[]} chunks SHA-256 in hex of each chunk that landed
 * @property {boolean} complete
 * @property {number} last_used ms since 1970
 */

const LAYOUT = 2;
const NAME = 'fanlight-store-v2';
const PREFIX = '/.fanlight/store/v2/';
/** Another tab holds a chunk for as long as it reads it: tries, and the pause between them. */
const TRIES = 50;
const PAUSE_MS = 10;

/** Whether this page has a place to keep files: that needs a secure context, and a worker. */
export function canKeep() {
  return (
    typeof caches !== 'undefined' &&
    crypto.subtle !== undefined &&
    typeof FileSystemFileHandle !== 'undefined' &&
    'createSyncAccessHandle' in FileSystemFileHandle.prototype
  );
}

/** @param {Uint8Array<ArrayBuffer>} bytes */
async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/** The place of one file. */
export class Shelf {
  /** @param {Cache} cache @param {string} name @param {FileSystemDirectoryHandle} chunks */
  constructor(cache, name, chunks) {
    this.cache = cache;
    this.name = name;
    this.chunks = chunks;
    this.indexUrl = `${self.origin}${PREFIX}${name}`;
  }

  /** Throws what the browser says where it keeps nothing, as some private windows do.
   * @param {string} url @returns {Promise<Shelf>} */
  static async open(url) {
    const name = await sha256(new TextEncoder().encode(url));
    const root = await navigator.storage.getDirectory();
    const all = await root.getDirectoryHandle(NAME, { create: true });
    const chunks = await all.getDirectoryHandle(name, { create: true });
    return new Shelf(await caches.open(NAME), name, chunks);
  }

  /** The index, or null where there is none of this layout. @returns {Promise<Index | null>} */
  async index() {
    return readIndex(await this.cache.match(this.indexUrl));
  }

  /** @param {Index} index */
  async write(index) {
    await this.cache.put(this.indexUrl, Response.json(index));
  }

  /**
   * Keeps a chunk; returns its hash. Throws QuotaExceededError.
   * @param {number} n
   * @param {Uint8Array<ArrayBuffer>} bytes
   */
  async put(n, bytes) {
    const hash = await sha256(bytes);
    const file = await this.chunks.getFileHandle(`${n}`, { create: true });
    await held(file, 'readwrite', (chunk) => {
      chunk.truncate(bytes.length);
      // What power loss takes before it is on the disk, the hash finds missing.
      if (chunk.write(bytes, { at: 0 }) !== bytes.length)
        throw new DOMException('not enough space for a chunk', 'QuotaExceededError');
    });
    return hash;
  }

  /**
   * Chunk `n`, or null where it is missing or not what `hash` says; the caller owns it.
   * @param {number} n
   * @param {string} hash
   * @returns {Promise<Uint8Array<ArrayBuffer> | null>} */
  async take(n, hash) {
    const file = await this.chunks.getFileHandle(`${n}`).catch(() => null);
    if (!file) return null;
    const bytes = await held(file, 'read-only', (chunk) => {
      const memory = take(Math.min(CHUNK, chunk.getSize()));
      return memory.subarray(0, chunk.read(memory, { at: 0 }));
    });
    if ((await sha256(bytes)) === hash) return bytes;
    free(bytes);
    return null;
  }

  /** Forgets the file, the index first. */
  async clear() {
    await this.cache.delete(this.indexUrl);
    for await (const name of this.chunks.keys()) await this.chunks.removeEntry(name);
  }
}

/**
 * What `use` gives of the open file. Some browsers let one reader in at a time.
 * @template T
 * @param {FileSystemFileHandle} file
 * @param {'readwrite' | 'read-only'} mode
 * @param {(open: FileSystemSyncAccessHandle) => T} use
 * @returns {Promise<T>}
 */
async function held(file, mode, use) {
  for (let tries = 1; ; tries++) {
    let open;
    try {
      open = await file.createSyncAccessHandle({ mode });
    } catch (error) {
      const busy = error instanceof DOMException && error.name === 'NoModificationAllowedError';
      if (!busy || tries === TRIES) throw error;
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
      continue;
    }
    try {
      return use(open);
    } finally {
      open.close();
    }
  }
}

/** @param {Response | undefined} response @returns {Promise<Index | null>} */
async function readIndex(response) {
  const index = await response?.json().catch(() => null);
  return index?.layout === LAYOUT && index.chunk_bytes === CHUNK ? index : null;
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
  const cache = await caches.open(NAME);
  const found = [];
  for (const request of await cache.keys()) found.push(await readIndex(await cache.match(request)));
  return found.filter((index) => index !== null);
}

/** The indexes first: what they do not name is gone. */
export async function forgetAll() {
  await caches.delete(NAME);
  const root = await navigator.storage.getDirectory();
  await root.removeEntry(NAME, { recursive: true }).catch((error) => {
    if (error.name !== 'NotFoundError') throw error;
  });
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
