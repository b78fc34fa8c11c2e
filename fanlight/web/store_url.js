// A file behind a URL: reads and streams its chunks from the cache as they land, whoever downloads
// them, this tab or another one. Where nothing can be kept, parts come straight from the network.

import { CHUNK, free } from './buffers.js';
import { AbortedError, StoreError } from './errors.js';
import { Download } from './download.js';
import { Direct, changed, get, pause } from './network.js';
import { Shelf, canKeep, checkSpan, newIndex, parts } from './store_shelf.js';

/** @typedef {import('./store_shelf.js').Index} Index */
/** @typedef {import('./store.js').Bytes} Bytes */
/** @typedef {import('./store.js').Progress} Progress */

const FOLLOW_MS = 200;
const NO_SPACE = 'the browser gives no more space';

/** @typedef {import('./store.js').StoredFile} StoredFile */

/** @implements {StoredFile} */
export class UrlFile {
  size = 0;
  identity = '';
  /** @type {import('./store.js').Stats} */
  stats = { network_bytes: 0, cache_bytes: 0, requests: 0, open_ms: 0, download_ms: 0 };
  /** @type {Promise<void>} */
  done = Promise.resolve();
  /** @type {Index | null} */
  #index = null;
  /** @type {Shelf | null} */
  #shelf = null;
  /** @type {Direct | null} set where the rest can not be kept */
  #direct = null;
  /** @type {unknown} what ended the download */
  #failure = null;
  #control = new AbortController();
  /** @type {{n: number, bytes: Bytes} | null} the last chunk of a small read */
  #recent = null;
  /** @type {Set<(progress: Progress) => void>} */
  #listeners = new Set();
  /** Bytes that came and are not in a chunk that landed. */
  #partial = 0;
  #wake = () => {};
  /** @type {Promise<void>} */
  #changed = Promise.resolve();

  /** @param {string} url */
  constructor(url) {
    this.url = url;
    this.name = decodeURIComponent(new URL(url).pathname.split('/').pop() || url);
    this.#change();
  }

  /** Starts the download; resolves when size and identity are known. */
  async begin() {
    const begin = performance.now();
    const { signal } = this.#control;
    this.done = this.#obtain()
      .catch((error) => {
        this.#failure ??= signal.aborted ? new AbortedError('aborted', { cause: error }) : error;
        throw this.#failure;
      })
      .finally(() => {
        this.stats.download_ms = performance.now() - begin;
        this.#change();
      });
    this.done.catch(() => {}); // begin, read and stream report it too
    while (!this.identity) {
      if (this.#failure) throw this.#failure;
      await this.#changed;
    }
    this.stats.open_ms = performance.now() - begin;
  }

  /** @param {number} offset @param {number} length @returns {AsyncGenerator<Bytes, void, void>} */
  async *stream(offset, length) {
    checkSpan(this, offset, length);
    const all = [...parts(offset, length)];
    let ahead = all.length ? this.#chunk(all[0].n) : null;
    for (const [i, { from, to }] of all.entries()) {
      const bytes = await /** @type {Promise<Bytes>} */ (ahead);
      ahead = i + 1 < all.length ? this.#chunk(all[i + 1].n) : null;
      ahead?.catch(() => {}); // awaited next, unless the reader leaves
      yield bytes.subarray(from, to);
      free(bytes);
    }
  }

  /** @param {number} offset @param {number} length */
  async read(offset, length) {
    checkSpan(this, offset, length);
    const result = new Uint8Array(length);
    let filled = 0;
    for (const { n, from, to } of parts(offset, length)) {
      const bytes = await this.#chunk(n);
      result.set(bytes.subarray(from, to), filled);
      this.#remember(n, bytes);
      filled += to - from;
    }
    return result;
  }

  /** @param {(progress: Progress) => void} listener */
  listen(listener) {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  async close() {
    this.#failure ??= new AbortedError('the file was closed');
    this.#control.abort();
    this.#change();
    await this.done.catch(() => {});
    await this.#direct?.close();
    this.#recent = null;
  }

  // --- obtaining

  async #obtain() {
    if (!canKeep())
      return this.#goDirect('this page can not keep files: it is not a secure context');
    let shelf;
    try {
      shelf = await Shelf.open(this.url);
    } catch (error) {
      return this.#goDirect(isFull(error) ? NO_SPACE : 'this window keeps no files');
    }
    this.#shelf = shelf;
    const index = await shelf.index();
    if (index?.complete) {
      this.#adopt(index);
      await shelf.write({ ...index, last_used: Date.now() });
      return this.#report();
    }
    const { signal } = this.#control;
    let leading = false;
    const lead = navigator.locks.request(`fanlight:${this.url}`, { signal }, async () => {
      leading = true;
      await this.#lead(shelf);
    });
    const follow = async () => {
      while (!leading && !signal.aborted) {
        const now = await shelf.index();
        // An index that moves has been checked against the server by its downloader.
        if (
          !leading &&
          now &&
          now.size !== null &&
          (now.complete || now.last_used > (index?.last_used ?? 0))
        ) {
          this.#adopt(now);
          this.#report();
        }
        await pause(FOLLOW_MS, signal);
      }
    };
    await Promise.all([lead, follow()]);
    this.#report();
  }

  /** As the only downloader of this file. @param {Shelf} shelf */
  async #lead(shelf) {
    const download = new Download(
      this.url,
      shelf,
      {
        known: (index) => this.#adopt(index),
        landed: (bytes) => {
          this.#partial -= bytes.length;
          free(bytes);
          this.#change();
        },
        received: (bytes) => {
          this.stats.network_bytes += bytes;
          this.#partial += bytes;
          this.#report();
        },
        asked: () => {
          this.#partial = 0;
          this.stats.requests += 1;
        },
      },
      this.#control.signal,
    );
    try {
      await download.run(this.identity ? (this.#index?.etag ?? '') : '');
    } catch (error) {
      if (!isFull(error)) throw error;
      await this.#goDirect(NO_SPACE);
    }
  }

  /** From now on without keeping. @param {string} why */
  async #goDirect(why) {
    const { signal } = this.#control;
    const count = (/** @type {number} */ bytes) => void (this.stats.network_bytes += bytes);
    this.stats.requests += 1;
    if (!this.#index) {
      const answer = await get(this.url, 0, undefined, '', signal);
      await answer.body.cancel();
      if (answer.size === null) {
        throw new StoreError('the server does not say how large the file is', {
          where: this.url,
          hint: 'Serve it with Content-Length, uncompressed.',
        });
      }
      this.#adopt(newIndex(this.url, answer));
    }
    this.#direct = new Direct(this.url, this.#index?.etag ?? '', count, signal);
    const message = `${this.name}: ${why}, so it is read from the network again on every visit`;
    for (const listener of this.#listeners)
      listener({ stage: 'warning', done: 0, total: this.size, message });
    this.#change();
  }

  /** @param {Index} index */
  #adopt(index) {
    if (this.identity && index.etag !== this.#index?.etag) {
      this.#failure = changed(this.url);
      this.#control.abort();
    }
    this.#index = index;
    this.size = index.size ?? 0;
    this.identity = `${this.url}#${index.etag || index.lastModified}#${this.size}`;
    this.#change();
  }

  // --- chunks

  /**
   * Chunk `n`, when it is there; the caller owns it.
   * @param {number} n
   * @returns {Promise<Bytes>}
   */
  async #chunk(n) {
    while (true) {
      if (this.#recent?.n === n) {
        const { bytes } = this.#recent;
        this.#recent = null;
        return bytes;
      }
      const hash = this.#index?.chunks[n];
      if (hash && this.#shelf) {
        const kept = await this.#shelf.take(n, hash);
        this.stats.cache_bytes += kept?.length ?? 0;
        return kept ?? this.#repair(this.#shelf, n, hash);
      }
      if (this.#failure) throw this.#failure;
      if (this.#direct) {
        return this.#direct.read(n * CHUNK, Math.min(this.size, (n + 1) * CHUNK));
      }
      await this.#changed;
    }
  }

  /**
   * Gets a chunk again that was evicted or spoilt.
   * @param {Shelf} shelf
   * @param {number} n
   * @param {string} hash
   */
  async #repair(shelf, n, hash) {
    const start = n * CHUNK;
    const direct = new Direct(
      this.url,
      this.#index?.etag ?? '',
      (count) => {
        this.stats.network_bytes += count;
      },
      this.#control.signal,
      true,
    );
    this.stats.requests += 1;
    const bytes = await direct.read(start, Math.min(this.size, start + CHUNK));
    await direct.close();
    if ((await shelf.put(n, bytes)) !== hash) {
      await shelf.clear();
      throw changed(this.url);
    }
    return bytes;
  }

  /**
   * Keeps the chunk of a small read for whoever asks next.
   * @param {number} n
   * @param {Bytes} bytes
   */
  #remember(n, bytes) {
    if (this.#recent) free(this.#recent.bytes);
    this.#recent = { n, bytes };
  }

  // --- news

  /** Wakes all that wait for a chunk, for the size or for a failure. */
  #change() {
    this.#wake();
    this.#changed = new Promise((resolve) => {
      this.#wake = resolve;
    });
  }

  #report() {
    if (!this.#index) return;
    const landed = this.#index.chunks.filter((hash) => hash !== null).length * CHUNK;
    const done = Math.min(this.size, landed + Math.max(0, Math.min(CHUNK, this.#partial)));
    for (const listener of this.#listeners) listener({ stage: 'download', done, total: this.size });
  }
}

/** @param {unknown} error */
function isFull(error) {
  return error instanceof DOMException && error.name === 'QuotaExceededError';
}
