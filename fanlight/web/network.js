// One GET of a file from some byte on. Everything that can go wrong becomes a StoreError that says
// what to do; `transient` marks those worth another try. Knows nothing of caches.

import { readInto, take } from './buffers.js';
import { AbortedError, StoreError } from './errors.js';

/**
 * @typedef {object} Answer
 * @property {number} start the offset of the body's first byte: 0 where the server ignores Range
 * @property {boolean} partial whether the body is what was asked for, not the whole file
 * @property {number | null} size bytes of the whole file, where the server says
 * @property {string} etag
 * @property {string} lastModified
 * @property {Body} body
 */

/** Tries without any progress before giving up; they wait 1/4, 1/2, 1, 2 s. */
export const RETRIES = 4;
/** A connection that brings nothing, or less than a read waits for, for so long is given up. */
const STALL_MS = 30_000;
/**
 * A read waits for more bytes the faster they come: each read leaves some kilobytes for the garbage
 * collector, and a gigabyte in pieces as they come (76 KB) makes 11,000. 838 MB left 26 MB so, 13 MB
 * with reads of 1 MB.
 */
const LEAST = { bytes: 64 << 10, most: 1 << 20, fast_ms: 50, slow_ms: 200 };

/** A StoreError that may pass with time. */
export class TransientError extends StoreError {
  static code = 'StoreError';
}

/**
 * Asks for bytes `[start, end)` of `url`; `end` absent: to its end. Throws StoreError or
 * AbortedError.
 * @param {string} url @param {number} start @param {number | undefined} end
 * @param {string} etag of the version wanted, or ''
 * @param {AbortSignal} [signal]
 * @returns {Promise<Answer>}
 */
export async function get(url, start, end, etag, signal) {
  /** @type {Record<string, string>} */
  const headers = {};
  if (start > 0 || end !== undefined) {
    headers.Range = `bytes=${start}-${end === undefined ? '' : end - 1}`;
    // Elsewhere If-Range would need a preflight; the caller compares the etags anyway.
    if (etag && !etag.startsWith('W/') && new URL(url).origin === self.origin)
      headers['If-Range'] = etag;
  }
  let response;
  try {
    response = await fetch(url, { headers, signal, cache: 'no-store' });
  } catch (cause) {
    if (signal?.aborted) throw new AbortedError('aborted', { cause });
    throw new TransientError('the network did not answer', {
      where: url,
      got: cause,
      cause,
      hint: 'Check the connection (and that the server allows this origin), then reload.',
    });
  }
  if (!response.ok || !response.body) {
    await response.body?.cancel();
    throw statusError(url, response.status);
  }
  const answered = response.status === 206 ? start : 0;
  return {
    start: answered,
    partial: response.status === 206,
    size: sizeOf(response, answered, end),
    etag: response.headers.get('etag') ?? '',
    lastModified: response.headers.get('last-modified') ?? '',
    body: new Body(response.body, url, signal),
  };
}

/**
 * The body of an answer, read into memory that the caller gives: new arrays for each piece would
 * pile up faster than they are collected.
 */
class Body {
  /** @type {ReadableStreamBYOBReader | null} */
  #direct = null;
  /**
   * @type {ReadableStreamDefaultReader<Uint8Array<ArrayBuffer>> | null} where there are no byte streams
   */
  #plain = null;
  /** @type {Uint8Array<ArrayBuffer>} */
  #rest = new Uint8Array();
  #least = LEAST.bytes;

  /**
   * @param {ReadableStream<Uint8Array<ArrayBuffer>>} stream
   * @param {string} url
   * @param {AbortSignal} [signal]
   */
  constructor(stream, url, signal) {
    this.url = url;
    this.signal = signal;
    try {
      this.#direct = stream.getReader({ mode: 'byob' });
    } catch {
      this.#plain = stream.getReader();
    }
  }

  /**
   * Reads some bytes to `[from, to)` of `bytes`; `count` is 0 at the end. The memory comes back in
   * another
   * array: the one given must not be used again.
   * @param {Uint8Array<ArrayBuffer>} bytes @param {number} from @param {number} to
   * @returns {Promise<{bytes: Uint8Array<ArrayBuffer>, count: number}>} */
  async read(bytes, from, to) {
    const stalled = setTimeout(() => void this.cancel(), STALL_MS); // the read then ends, as if cut
    try {
      return await (this.#direct
        ? this.#readDirect(this.#direct, bytes, from, to)
        : this.#readPlain(bytes, from, to));
    } catch (cause) {
      if (this.signal?.aborted) throw new AbortedError('aborted', { cause });
      const hint = 'Reload to resume.';
      throw new TransientError('the network was lost', {
        where: this.url,
        got: cause,
        cause,
        hint,
      });
    } finally {
      clearTimeout(stalled);
    }
  }

  /**
   * @param {ReadableStreamBYOBReader} reader
   * @param {Uint8Array<ArrayBuffer>} bytes
   * @param {number} from
   * @param {number} to */
  async #readDirect(reader, bytes, from, to) {
    const begin = performance.now();
    const got = await readInto(reader, bytes, from, to, this.#least);
    const ms = performance.now() - begin;
    if (ms < LEAST.fast_ms) this.#least = Math.min(2 * this.#least, LEAST.most);
    else if (ms > LEAST.slow_ms) this.#least = Math.max(this.#least / 2, LEAST.bytes);
    return got;
  }

  /** @param {Uint8Array<ArrayBuffer>} bytes @param {number} from @param {number} to */
  async #readPlain(bytes, from, to) {
    while (!this.#rest.length) {
      const { done, value } =
        await /** @type {ReadableStreamDefaultReader<Uint8Array<ArrayBuffer>>} */ (
          this.#plain
        ).read();
      if (done) return { bytes, count: 0 };
      this.#rest = value;
    }
    const part = this.#rest.subarray(0, to - from);
    bytes.set(part, from);
    this.#rest = this.#rest.subarray(part.length);
    return { bytes, count: part.length };
  }

  async cancel() {
    await (this.#direct ?? this.#plain)?.cancel().catch(() => {});
  }
}

/**
 * Bytes of a file straight from the network, where nothing can be kept: one request is read on as
 * long as
 * the reads go forward. One read at a time. */
export class Direct {
  /** @type {Answer | null} */
  #answer = null;
  #at = 0;
  /** @type {Promise<unknown>} */
  #last = Promise.resolve();

  /**
   * @param {string} url
   * @param {string} etag of the version wanted, or ''
   * @param {(bytes: number) => void} count
   * @param {AbortSignal} [signal]
   * @param {boolean} [bounded] ask for what is read only, not for all that follows
   */
  constructor(url, etag, count, signal, bounded = false) {
    this.url = url;
    this.etag = etag;
    this.count = count;
    this.signal = signal;
    this.bounded = bounded;
  }

  /** @param {number} start @param {number} end @returns {Promise<Uint8Array<ArrayBuffer>>} */
  read(start, end) {
    const turn = this.#last.then(() => this.#read(start, end));
    this.#last = turn.catch(() => {});
    return turn;
  }

  async close() {
    const answer = this.#answer;
    this.#answer = null;
    await answer?.body.cancel();
  }

  /** @param {number} start @param {number} end */
  async #read(start, end) {
    for (let tries = 1; ; tries++) {
      try {
        return await this.#try(start, end);
      } catch (error) {
        await this.close();
        if (!(error instanceof TransientError) || tries > RETRIES) throw error;
        await pause(125 * 2 ** tries, this.signal);
      }
    }
  }

  /** @param {number} start @param {number} end */
  async #try(start, end) {
    if (!this.#answer || this.#at > start) {
      await this.close();
      this.#answer = await get(
        this.url,
        start,
        this.bounded ? end : undefined,
        this.etag,
        this.signal,
      );
      this.#at = this.#answer.start;
      if (this.etag && this.#answer.etag && this.etag !== this.#answer.etag)
        throw changed(this.url);
    }
    let bytes = take(end - start);
    while (this.#at < end) {
      const from = Math.max(0, this.#at - start); // before `start`, bytes are read over
      const to = this.#at < start ? Math.min(bytes.length, start - this.#at) : bytes.length;
      const got = await this.#answer.body.read(bytes, from, to);
      if (!got.count) throw new TransientError('the connection ended early', { where: this.url });
      this.count(got.count);
      this.#at += got.count;
      bytes = got.bytes;
    }
    return bytes;
  }
}

/** The error for a file that is another one now. @param {string} url */
export function changed(url) {
  return new StoreError('the file changed while it was read', {
    where: url,
    hint: 'Reload to get the new one.',
  });
}

/** Resolves after `ms`, or when aborted. @param {number} ms @param {AbortSignal} [signal] */
export function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(() => resolve(undefined), ms);
    signal?.addEventListener(
      'abort',
      () => {
        clearTimeout(timer);
        resolve(undefined);
      },
      { once: true },
    );
  });
}

/** @param {Response} response @param {number} start @param {number} [end] */
function sizeOf(response, start, end) {
  const range = /\/(\d+)$/.exec(response.headers.get('content-range') ?? '');
  if (range) return Number(range[1]);
  const length = response.headers.get('content-length');
  // A compressed body is longer than it says; a part says nothing of the whole unless it runs to
  // the end.
  if (length === null || response.headers.has('content-encoding')) return null;
  if (response.status === 206) return end === undefined ? start + Number(length) : null;
  return Number(length);
}

/** @param {string} url @param {number} status */
function statusError(url, status) {
  const details = { where: url, got: `status ${status}` };
  if (status === 404 || status === 410) {
    return new StoreError('the file is not there', {
      ...details,
      hint: 'Check the address and the revision.',
    });
  }
  if (status === 401 || status === 403) {
    return new StoreError('the server refuses the file', {
      ...details,
      hint: 'It may be gated: accept its terms, or use a copy that is open.',
    });
  }
  if (status === 429 || status >= 500) {
    return new TransientError('the server is not able to answer now', {
      ...details,
      hint: 'Try again in a minute.',
    });
  }
  return new StoreError('the server gave no file', { ...details, hint: 'Check the address.' });
}
