// Model bytes, from a URL by way of what the browser keeps, or from a Blob. In: a source. Out: a file whose
// parts can be read while the rest is still on its way, never whole in memory. One tab downloads a
// file, the others follow its index; a download that was cut goes on where it ended; a complete
// file asks the network nothing. The parts: store_url.js (a file behind a URL), download.js,
// network.js (one request), store_shelf.js (the layout of what is kept). Knows nothing of models.

import { CHUNK, free } from './buffers.js';
import { StoreError, throwIfAborted } from './errors.js';
import { Shelf, canKeep, checkSpan, forgetAll, indexes, parts } from './store_shelf.js';
import { UrlFile } from './store_url.js';

/** @typedef {Uint8Array<ArrayBuffer>} Bytes */
/**
 * @typedef {{stage: string, done: number, total: number, message?: string}} Progress stage: download or warning
 */
/** @typedef {{progress?: (progress: Progress) => void, signal?: AbortSignal}} OpenOptions */
/**
 * @typedef {{network_bytes: number, cache_bytes: number, requests: number, open_ms: number, download_ms: number}} Stats
 */
/**
 * @typedef {object} StoredFile
 * @property {number} size
 * @property {string} name
 * @property {string} identity changes when the file does
 * @property {Stats} stats
 * @property {Promise<void>} done when nothing is left to download
 * @property {(offset: number, length: number) => AsyncGenerator<Bytes, void, void>} stream
 *   each piece is valid until the next one is asked for
 * @property {(offset: number, length: number) => Promise<Bytes>} read bytes that the caller owns
 * @property {(listener: (progress: Progress) => void) => () => void} listen returns what ends it
 * @property {() => Promise<void>} close ends the download; what landed is kept
 */

/** Opens a URL or a Blob; a URL's download starts at once. Throws StoreError, AbortedError.
 * @param {string | Blob} source @param {OpenOptions} [options] @returns {Promise<StoredFile>} */
export async function open(source, { progress, signal } = {}) {
  throwIfAborted(signal);
  if (typeof source !== 'string') return new BlobFile(source);
  const url = new URL(source, self.location.href);
  url.hash = '';
  const file = new UrlFile(url.href);
  const silence = progress ? file.listen(progress) : () => {};
  const abort = () => void file.close();
  signal?.addEventListener('abort', abort, { once: true });
  try {
    await file.begin();
    return file;
  } finally {
    silence();
    signal?.removeEventListener('abort', abort);
  }
}

/** What is kept; sizes in bytes, `last_used` in ms since 1970. */
export async function list() {
  const all = canKeep() ? await indexes() : [];
  return all.map(({ url, size, chunks, complete, last_used }) => {
    const count = chunks.filter((hash) => hash !== null).length;
    return { url, size, have: Math.min(size ?? Infinity, count * CHUNK), complete, last_used };
  });
}

/** Forgets one file. @param {string} url */
export async function remove(url) {
  if (canKeep()) await (await Shelf.open(url)).clear();
}

/** Forgets all files. */
export async function clear() {
  if (canKeep()) await forgetAll();
}

/** @implements {StoredFile} */
class BlobFile {
  done = Promise.resolve();
  /** @type {Stats} */
  stats = { network_bytes: 0, cache_bytes: 0, requests: 0, open_ms: 0, download_ms: 0 };

  /** @param {Blob} blob */
  constructor(blob) {
    const { name = 'blob', lastModified = 0 } = /** @type {Partial<File>} */ (blob);
    this.blob = blob;
    this.size = blob.size;
    this.name = name;
    this.identity = `blob:${name}#${lastModified}#${blob.size}`;
  }

  /** @param {number} offset @param {number} length */
  async *stream(offset, length) {
    checkSpan(this, offset, length);
    for (const { n, from, to } of parts(offset, length)) {
      const bytes = await this.read(n * CHUNK + from, to - from);
      yield bytes;
      free(bytes);
    }
  }

  /** @param {number} offset @param {number} length */
  async read(offset, length) {
    checkSpan(this, offset, length);
    try {
      return new Uint8Array(await this.blob.slice(offset, offset + length).arrayBuffer());
    } catch (cause) {
      throw new StoreError('the file can not be read', {
        where: this.name,
        got: cause,
        cause,
        hint: 'Choose it again.',
      });
    }
  }

  listen() {
    return () => {};
  }

  async close() {}
}
