// Requests and replies between page, Python worker and executor worker: one tagged message type.
//
//   request   {id, type, ...fields}          type is the request's name
//   replies   {id, type: 'ok', value}        the end
//             {id, type: 'error', error}     the end; error as errors.js toMessage() writes it
//             {id, type: 'progress', value}  {stage, done, total, …}, a few a second, before the end
//             {id, type: 'chunk', value}     any number, before the end
//   abort     {id, type: 'abort'}            id of the request in flight; it then ends in AbortedError
//
// Ids belong to the side that asks. A Channel may ask, serve, or both.

import { AbortedError, FanlightError, fromMessage, toMessage, UnsupportedError } from './errors.js';

/**
 * @typedef {object} Endpoint a Worker, a MessagePort or a worker's own global scope
 * @property {(message: any, transfer: Transferable[]) => void} postMessage
 * @property {(type: string, listener: (event: any) => void) => void} addEventListener
 * @property {() => void} [start]
 */
/**
 * @typedef {object} Context what a handler gets beside the request's fields
 * @property {AbortSignal} signal
 * @property {(value: any) => void} progress
 * @property {(value: any, transfer?: Transferable[]) => void} chunk
 */
/**
 * @typedef {(fields: any, context: Context) => any} Handler returns a value, a Transfer or a promise
 */
/**
 * @typedef {object} RequestOptions
 * @property {AbortSignal} [signal]
 * @property {(value: any) => void} [onProgress]
 * @property {(value: any) => void} [onChunk]
 * @property {Transferable[]} [transfer]
 */
/**
 * @typedef {object} Pending
 * @property {(value: any) => void} resolve
 * @property {(error: Error) => void} reject
 * @property {RequestOptions} options
 * @property {() => void} abort
 */

const PROGRESS_MS = 250;

/** A handler's result whose buffers move instead of being copied. */
export class Transfer {
  /** @param {any} value @param {Transferable[]} list */
  constructor(value, list) {
    this.value = value;
    this.list = list;
  }
}

/** One end of a conversation. */
export class Channel {
  /** @type {Map<number, Pending>} */
  #pending = new Map();
  /** @type {Map<number, AbortController>} */
  #serving = new Map();
  #next = 1;
  /** @type {Error | null} */
  #failed = null;

  /**
   * @param {Endpoint} endpoint
   * @param {Record<string, Handler>} [handlers] request type → handler
   */
  constructor(endpoint, handlers = {}) {
    this.endpoint = endpoint;
    this.handlers = new Map(Object.entries(handlers));
    endpoint.addEventListener('message', (event) => this.#receive(event.data));
    endpoint.addEventListener('messageerror', () =>
      this.fail(new FanlightError('a message could not be read')),
    );
    endpoint.addEventListener('error', (event) => {
      this.fail(
        new FanlightError('the worker failed', { got: event.message ?? 'it could not be loaded' }),
      );
    });
    endpoint.start?.();
  }

  /**
   * Resolves with the reply's value. Rejects with the error of the other side; an aborted request
   * rejects
   * only once the other side has cleaned up.
   * @param {string} type
   * @param {object} [fields]
   * @param {RequestOptions} [options]
   * @returns {Promise<any>}
   */
  request(type, fields = {}, options = {}) {
    const { signal, transfer = [] } = options;
    if (this.#failed) return Promise.reject(this.#failed);
    if (signal?.aborted) return Promise.reject(new AbortedError('aborted'));
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      const abort = () => this.endpoint.postMessage({ id, type: 'abort' }, []);
      signal?.addEventListener('abort', abort, { once: true });
      this.#pending.set(id, { resolve, reject, options, abort });
      this.endpoint.postMessage({ ...fields, id, type }, transfer);
    });
  }

  /**
   * The chunks of a request, as they come. Leaving the loop early aborts the request.
   * @param {string} type @param {object} [fields] @param {RequestOptions} [options]
   * @returns {AsyncGenerator<any, void, void>}
   */
  async *stream(type, fields = {}, options = {}) {
    const control = new AbortController();
    const stop = () => control.abort();
    if (options.signal?.aborted) stop();
    options.signal?.addEventListener('abort', stop, { once: true });
    /** @type {any[]} */
    const chunks = [];
    let wake = () => {};
    let ended = false;
    const onChunk = (/** @type {any} */ value) => {
      chunks.push(value);
      wake();
    };
    const end = this.request(type, fields, { ...options, signal: control.signal, onChunk });
    const settled = end
      .catch(() => {})
      .then(() => {
        ended = true;
        wake();
      });
    try {
      while (true) {
        while (chunks.length) yield chunks.shift();
        if (ended) break;
        await new Promise((resolve) => {
          wake = () => resolve(undefined);
        });
      }
      await end;
    } finally {
      if (!ended) control.abort();
      await settled;
      options.signal?.removeEventListener('abort', stop);
    }
  }

  /** Ends all requests in flight, and all to come, with `error`. @param {Error} error */
  fail(error) {
    this.#failed ??= error;
    for (const id of [...this.#pending.keys()]) this.#take(id)?.reject(error);
    for (const control of this.#serving.values()) control.abort();
  }

  /** @param {any} message */
  #receive(message) {
    const { id, type } = message;
    switch (type) {
      case 'ok':
        return this.#take(id)?.resolve(message.value);
      case 'error':
        return this.#take(id)?.reject(fromMessage(message.error));
      case 'progress':
        return this.#pending.get(id)?.options.onProgress?.(message.value);
      case 'chunk':
        return this.#pending.get(id)?.options.onChunk?.(message.value);
      case 'abort':
        return this.#serving.get(id)?.abort();
      default:
        return void this.#serve(message);
    }
  }

  /** Removes and returns what waits for `id`. @param {number} id */
  #take(id) {
    const pending = this.#pending.get(id);
    this.#pending.delete(id);
    pending?.options.signal?.removeEventListener('abort', pending.abort);
    return pending;
  }

  /** @param {any} message */
  async #serve({ id, type, ...fields }) {
    const control = new AbortController();
    this.#serving.set(id, control);
    const context = {
      signal: control.signal,
      progress: seldom((value) => this.endpoint.postMessage({ id, type: 'progress', value }, [])),
      chunk: (/** @type {any} */ value, /** @type {Transferable[]} */ transfer = []) =>
        this.endpoint.postMessage({ id, type: 'chunk', value }, transfer),
    };
    try {
      const handler = this.handlers.get(type);
      if (!handler) throw new UnsupportedError('unknown request', { got: type });
      const result = await handler(fields, context);
      const { value, list } = result instanceof Transfer ? result : { value: result, list: [] };
      this.endpoint.postMessage({ id, type: 'ok', value }, list);
    } catch (error) {
      this.endpoint.postMessage({ id, type: 'error', error: toMessage(error) }, []);
    } finally {
      this.#serving.delete(id);
    }
  }
}

/**
 * Lets of each stage's progress through what is news to a person: its beginning, its end, messages,
 * and a few values a second. Every event costs garbage in all workers that it passes: one for each
 * megabyte of a 1 GB model left 40 MB.
 * @param {(value: any) => void} send
 * @returns {(value: any) => void}
 */
function seldom(send) {
  /** @type {Map<string, number>} */
  const sent = new Map();
  return (value) => {
    const now = performance.now();
    const fresh = now - (sent.get(value.stage) ?? -Infinity) < PROGRESS_MS;
    if (fresh && value.done !== value.total && value.message === undefined) return;
    sent.set(value.stage, now);
    send(value);
  };
}
