// The download of one file into its shelf: the missing chunks, in order, resumed where the last
// visit was cut, tried again where the network stumbles. The caller holds the lock of the file.

import { CHUNK, free, take } from './buffers.js';
import { StoreError, throwIfAborted } from './errors.js';
import { RETRIES, TransientError, changed, get, pause } from './network.js';
import { newIndex } from './store_shelf.js';

/** @typedef {import('./store_shelf.js').Index} Index */
/** @typedef {import('./store_shelf.js').Shelf} Shelf */
/** @typedef {import('./network.js').Answer} Answer */
/**
 * @typedef {object} Events
 * @property {(index: Index) => void} known the server's version is the index's, and its size is known
 * @property {(bytes: Uint8Array<ArrayBuffer>) => void} landed a chunk; the bytes are the listener's now
 * @property {(bytes: number) => void} received
 * @property {() => void} asked
 */

/** Chunks of one request, where the network is faster than the disk. */
const WINDOW = 4;
/** A chunk that comes in less time comes faster than disks write. */
const FAST_MS = 80;

export class Download {
  /** @type {Index | null} */
  index = null;
  #announced = false;
  /**
   * Whether requests ask for WINDOW chunks only, as they do until the network proves slow: Chromium
   * buffers some 60 MB of a body that is read too slowly.
   */
  #windowed = true;
  #ranges = true;

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
    for (let tries = 0; ;) {
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
    const after =
      this.index?.chunks.findIndex((hash, i) => i > /** @type {number} */ (n) && hash !== null) ??
      -1;
    this.events.asked();
    let end = after < 0 ? undefined : after * CHUNK;
    if (this.#windowed && this.#ranges)
      end = Math.min(end ?? Infinity, this.index?.size ?? Infinity, (n + WINDOW) * CHUNK);
    const answer = await get(this.url, n * CHUNK, end, this.index?.etag ?? '', this.signal);
    this.#ranges = answer.start === n * CHUNK;
    if (!this.#ranges) this.#windowed = false;
    try {
      if (answer.partial && answer.size === null && !this.index?.size && end !== undefined) {
        this.#windowed = false; // a part of what? The whole body's length tells
        return false;
      }
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
      await this.#fill(this.index, answer, n, end ?? Infinity);
    } finally {
      await answer.body.cancel();
    }
    return false;
  }

  /**
   * The body's bytes into chunks from `n` on, one in memory at a time.
   * @param {Index} index
   * @param {Answer} answer
   * @param {number} n
   * @param {number} end of what was asked for
   */
  async #fill(index, answer, n, end) {
    const begin = n * CHUNK;
    let position = answer.start;
    let chunk = emptyChunk(index, n);
    let filled = 0;
    let ended = false;
    let time = performance.now();
    try {
      while (chunk.length && index.chunks[n] == null) {
        const [from, to] =
          position < begin ? [0, Math.min(chunk.length, begin - position)] : [filled, chunk.length];
        const got = await answer.body.read(chunk, from, to);
        chunk = got.bytes;
        ended = got.count === 0;
        if (ended) break;
        this.events.received(got.count);
        if (position >= begin) filled += got.count;
        position += got.count;
        if (filled < chunk.length) continue;
        const whole = performance.now();
        await this.#land(index, n, chunk);
        const landed = performance.now();
        // the disk is the slower one
        const outrun = landed - whole > (whole - time) / 4 || whole - time < FAST_MS;
        time = landed;
        n += 1;
        chunk = emptyChunk(index, n);
        filled = 0;
        const narrow = outrun && !this.#windowed;
        this.#windowed = outrun;
        if (narrow && this.#ranges) return;
      }
    } finally {
      if (!ended || index.size !== null) free(chunk);
    }
    if (index.size === null && ended) {
      if (filled) await this.#land(index, n, chunk.slice(0, filled));
      index.size = n * CHUNK + filled;
    } else if (index.size !== null && ended && position < Math.min(end, index.size)) {
      throw new TransientError('the connection ended early', {
        where: this.url,
        got: position,
        wanted: index.size,
      });
    }
  }

  /** @param {Index} index @param {number} n @param {Uint8Array<ArrayBuffer>} bytes */
  async #land(index, n, bytes) {
    index.chunks[n] = await this.shelf.put(n, bytes);
    index.last_used = Date.now();
    await this.shelf.write(index);
    this.events.landed(bytes);
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
    if (rest > quota - usage)
      throw new DOMException('not enough space for the file', 'QuotaExceededError');
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
  return take(Math.max(0, Math.min(CHUNK, rest)));
}

/** Whether what is kept and what the server has now are one version, as far as the server says.
 * @param {Index} index @param {Answer} answer */
function sameFile(index, { etag, lastModified, size }) {
  if (etag && index.etag && etag !== index.etag) return false;
  if (lastModified && index.lastModified && lastModified !== index.lastModified) return false;
  return size === null || index.size === size;
}
