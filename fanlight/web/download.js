// The download of one file into its shelf: the missing chunks, in order, resumed where the last visit was
// cut, tried again where the network stumbles. The caller holds the lock of the file.

import { StoreError, throwIfAborted } from './errors.js';
import { RETRIES, TransientError, changed, get, next, pause } from './network.js';
import { CHUNK, newIndex } from './store_cache.js';

/** @typedef {import('./store_cache.js').Index} Index */
/** @typedef {import('./store_cache.js').Shelf} Shelf */
/** @typedef {import('./network.js').Answer} Answer */
/**
 * @typedef {object} Events
 * @property {(index: Index) => void} known the server's version is the index's, and its size is known
 * @property {(n: number, bytes: Uint8Array<ArrayBuffer>) => void} landed
 * @property {(bytes: number) => void} received
 * @property {() => void} asked
 */

export class Download {
  /** @type {Index | null} */
  index = null;
  #announced = false;

  /** @param {string} url @param {Shelf} shelf @param {Events} events @param {AbortSignal} signal */
  constructor(url, shelf, events, signal) {
    this.url = url;
    this.shelf = shelf;
    this.events = events;
    this.signal = signal;
  }

  get landed() {
    return this.index?.chunks.filter((hash) => hash !== null).length ?? 0;
  }

  /** Until all chunks are there. Throws StoreError, AbortedError, and QuotaExceededError as it is.
   * @param {string} identityEtag of the version that readers have begun with, or '' */
  async run(identityEtag) {
    this.index = await this.shelf.index();
    if (identityEtag && this.index && this.index.etag !== identityEtag) throw changed(this.url);
    this.#announced = identityEtag !== '';
    for (let tries = 0; ; ) {
      const before = this.landed;
      try {
        if (await this.#fetchMissing()) return;
        tries = 0;
      } catch (error) {
        if (!(error instanceof TransientError)) throw error;
        tries = this.landed > before ? 1 : tries + 1;
        if (tries > RETRIES) {
          const megabytes = (this.landed * CHUNK) / 2 ** 20;
          const hint = megabytes ? `Kept ${megabytes} MB; reload to resume.` : error.hint;
          throw new StoreError(error.what, { where: this.url, hint, cause: error });
        }
        await pause(125 * 2 ** tries, this.signal);
        throwIfAborted(this.signal);
      }
    }
  }

  /** One request for the first run of missing chunks; true when none is missing. */
  async #fetchMissing() {
    let n = firstMissing(this.index);
    if (this.index && n === null) {
      this.index.complete = true;
      await this.shelf.write(this.index);
      this.#announce(this.index);
      return true;
    }
    n ??= 0;
    const after = this.index?.chunks.findIndex((hash, i) => i > /** @type {number} */ (n) && hash !== null) ?? -1;
    this.events.asked();
    const end = after < 0 ? undefined : after * CHUNK;
    const answer = await get(this.url, n * CHUNK, end, this.index?.etag ?? '', this.signal);
    try {
      if (!this.index || !sameFile(this.index, answer)) {
        if (this.#announced) throw changed(this.url);
        await this.shelf.clear();
        this.index = null;
        if (answer.start > 0) return false; // once more, from the beginning
        this.index = newIndex(this.url, answer);
        n = 0;
      }
      await this.#checkQuota(this.index);
      this.index.last_used = Date.now();
      await this.shelf.write(this.index);
      if (this.index.size !== null) this.#announce(this.index);
      await this.#fill(this.index, answer, n);
    } finally {
      await answer.body.cancel().catch(() => {});
    }
    return false;
  }

  /** The body's bytes into chunks from `n` on; the last is on its way to the disk while the next one fills.
   * @param {Index} index @param {Answer} answer @param {number} n */
  async #fill(index, answer, n) {
    const begin = n * CHUNK;
    let position = answer.start;
    let chunk = emptyChunk(index, n);
    let filled = 0;
    /** @type {Promise<void>} */
    let landing = Promise.resolve();
    try {
      for (let bytes; (bytes = await next(answer, this.url, this.signal)); ) {
        this.events.received(bytes.length);
        let rest = bytes.subarray(Math.max(0, Math.min(bytes.length, begin - position)));
        position += bytes.length;
        while (rest.length) {
          if (typeof index.chunks[n] === 'string') return; // up to what is there
          const count = Math.min(rest.length, chunk.length - filled);
          if (!count) throw new StoreError('the server sent more bytes than it said', { where: this.url });
          chunk.set(rest.subarray(0, count), filled);
          rest = rest.subarray(count);
          filled += count;
          if (filled < chunk.length) continue;
          await landing;
          landing = this.#land(index, n, chunk);
          landing.catch(() => {}); // awaited next
          n += 1;
          chunk = emptyChunk(index, n);
          filled = 0;
        }
      }
    } finally {
      await landing;
    }
    if (index.size === null) {
      if (filled) await this.#land(index, n, chunk.slice(0, filled));
      index.size = n * CHUNK + filled;
    } else if (index.chunks[n] === null) {
      throw new TransientError('the connection ended early', { where: this.url, got: position, wanted: index.size });
    }
  }

  /** @param {Index} index @param {number} n @param {Uint8Array<ArrayBuffer>} bytes */
  async #land(index, n, bytes) {
    index.chunks[n] = await this.shelf.put(n, bytes);
    index.last_used = Date.now();
    await this.shelf.write(index);
    this.events.landed(n, bytes);
  }

  /** @param {Index} index */
  #announce(index) {
    this.#announced = true;
    this.events.known(index);
  }

  /** Throws QuotaExceededError where the rest can not fit. @param {Index} index */
  async #checkQuota(index) {
    const { quota = Infinity, usage = 0 } = (await navigator.storage?.estimate?.()) ?? {};
    const rest = (index.size ?? 0) - this.landed * CHUNK;
    if (rest > quota - usage) throw new DOMException('not enough space for the file', 'QuotaExceededError');
  }
}

/** The first chunk that is not there; null where all are. @param {Index | null} index */
function firstMissing(index) {
  if (!index) return 0;
  const n = index.chunks.indexOf(null);
  if (n >= 0) return n;
  return index.size === null ? index.chunks.length : null;
}

/** @param {Index} index @param {number} n */
function emptyChunk(index, n) {
  const rest = index.size === null ? CHUNK : index.size - n * CHUNK;
  return new Uint8Array(Math.max(0, Math.min(CHUNK, rest)));
}

/** Whether what is kept and what the server has now are one version, as far as the server says.
 * @param {Index} index @param {Answer} answer */
function sameFile(index, { etag, lastModified, size }) {
  if (etag && index.etag && etag !== index.etag) return false;
  if (lastModified && index.lastModified && lastModified !== index.lastModified) return false;
  return size === null || index.size === size;
}
