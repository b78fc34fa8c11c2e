// One GET of a file from some byte on. Everything that can go wrong becomes a StoreError that says what to
// do; `transient` marks those worth another try. Knows nothing of caches.

import { AbortedError, StoreError } from './errors.js';

/** The first lines of an answer, and its body. */
/**
 * @typedef {object} Answer
 * @property {number} start the offset of the body's first byte: 0 where the server ignores Range
 * @property {number | null} size bytes of the whole file, where the server says
 * @property {string} etag
 * @property {string} lastModified
 * @property {ReadableStreamDefaultReader<Uint8Array<ArrayBuffer>>} body
 */

/** A StoreError that may pass with time. */
export class TransientError extends StoreError {
  static code = 'StoreError';
}

/**
 * Asks for bytes `[start, end)` of `url`; `end` absent: to its end. Throws StoreError or AbortedError.
 * @param {string} url @param {number} start @param {number | undefined} end
 * @param {string} etag of the version wanted, or '' @param {AbortSignal} [signal] @returns {Promise<Answer>}
 */
export async function get(url, start, end, etag, signal) {
  /** @type {Record<string, string>} */
  const headers = {};
  if (start > 0 || end !== undefined) {
    headers.Range = `bytes=${start}-${end === undefined ? '' : end - 1}`;
    // Elsewhere If-Range would need a preflight; the caller compares the etags anyway.
    if (etag && !etag.startsWith('W/') && new URL(url).origin === self.origin) headers['If-Range'] = etag;
  }
  let response;
  try {
    response = await fetch(url, { headers, signal, cache: 'no-store' });
  } catch (cause) {
    if (signal?.aborted) throw new AbortedError('aborted', { cause });
    throw new TransientError('the network did not answer', {
      where: url, got: cause, cause, hint: 'Check the connection (and that the server allows this origin), then reload.',
    });
  }
  if (!response.ok || !response.body) {
    await response.body?.cancel();
    throw statusError(url, response.status);
  }
  const answered = response.status === 206 ? start : 0;
  return {
    start: answered,
    size: sizeOf(response, answered, end),
    etag: response.headers.get('etag') ?? '',
    lastModified: response.headers.get('last-modified') ?? '',
    body: response.body.getReader(),
  };
}

/** The next bytes of an answer, or null at its end. @param {Answer} answer @param {string} url
 * @param {AbortSignal} [signal] @returns {Promise<Uint8Array<ArrayBuffer> | null>} */
export async function next(answer, url, signal) {
  try {
    const { done, value } = await answer.body.read();
    return done ? null : value;
  } catch (cause) {
    if (signal?.aborted) throw new AbortedError('aborted', { cause });
    throw new TransientError('the network was lost', { where: url, got: cause, cause, hint: 'Reload to resume.' });
  }
}

/** Resolves after `ms`, or when aborted. @param {number} ms @param {AbortSignal} [signal] */
export function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(() => resolve(undefined), ms);
    signal?.addEventListener('abort', () => {
      clearTimeout(timer);
      resolve(undefined);
    }, { once: true });
  });
}

/** @param {Response} response @param {number} start @param {number} [end] */
function sizeOf(response, start, end) {
  const range = /\/(\d+)$/.exec(response.headers.get('content-range') ?? '');
  if (range) return Number(range[1]);
  const length = response.headers.get('content-length');
  // A compressed body is longer than it says; a part says nothing of the whole unless it runs to the end.
  if (length === null || response.headers.has('content-encoding')) return null;
  if (response.status === 206) return end === undefined ? start + Number(length) : null;
  return Number(length);
}

/** @param {string} url @param {number} status */
function statusError(url, status) {
  const details = { where: url, got: `status ${status}` };
  if (status === 404 || status === 410) {
    return new StoreError('the file is not there', { ...details, hint: 'Check the address and the revision.' });
  }
  if (status === 401 || status === 403) {
    return new StoreError('the server refuses the file', { ...details, hint: 'It may be gated: accept its terms, or use a copy that is open.' });
  }
  if (status === 429 || status >= 500) {
    return new TransientError('the server is not able to answer now', { ...details, hint: 'Try again in a minute.' });
  }
  return new StoreError('the server gave no file', { ...details, hint: 'Check the address.' });
}
