// The page's two hidden workers, one with Python, one without: started when first asked for, shared by all
// pipelines and sessions of the page. This file knows no models.

import { AbortedError, FanlightError, InputError } from './errors.js';
import { Channel } from './protocol.js';

/** @typedef {import('./fanlight.js').Progress} Progress */
/** @typedef {{executor: Channel, python: Channel}} Workers */

/** The two of a page; Python's starts when it is first asked for. Where one fails, both go. */
class Pair {
  /** @type {[Worker, Channel][]} */
  #all = [];
  /** @type {Channel | null} */
  #python = null;

  constructor() {
    const worker = new Worker(new URL('./executor_worker.js', import.meta.url), { type: 'module', name: 'fanlight executor' });
    this.executor = this.#watched(worker);
  }

  get python() {
    if (this.#python) return this.#python;
    const worker = new Worker(new URL('./python_worker.js', import.meta.url), { type: 'module', name: 'fanlight python' });
    const python = (this.#python = this.#watched(worker));
    const { port1, port2 } = new MessageChannel();
    for (const [channel, port] of /** @type {[Channel, MessagePort][]} */ ([[this.executor, port1], [python, port2]])) {
      channel.request('connect', { port }, { transfer: [port] }).catch(() => {}); // later requests fail, too
    }
    return python;
  }

  /** @param {Worker} worker */
  #watched(worker) {
    const channel = new Channel(worker);
    this.#all.push([worker, channel]);
    worker.addEventListener('error', ({ message }) => {
      if (shared === this) shared = null;
      const error = new FanlightError('a worker failed', {
        got: message || 'it could not be loaded', hint: 'Reload the page; its files must come from one origin.',
      });
      for (const [other, its] of this.#all) {
        its.fail(error);
        other.terminate();
      }
    });
    return channel;
  }
}

/** @type {Pair | null} */
let shared = null;

/** The page's workers; after a failure new ones. @returns {Workers} */
export function workers() {
  return (shared ??= new Pair());
}

/** Python's status, when it has started. @param {Channel} python @param {(progress: Progress) => void} progress
 * @returns {Promise<{python_ms: number, can_run_sync: boolean, version: string}>} */
export async function starting(python, progress) {
  progress({ stage: 'python', done: 0, total: 1 });
  const status = await python.request('status');
  progress({ stage: 'python', done: 1, total: 1 });
  return status;
}

/** @param {string | URL} model */
export function address(model) {
  try {
    return new URL(model, globalThis.document?.baseURI ?? location.href).href;
  } catch (cause) {
    throw new InputError('not the address of a model', { got: model, cause, hint: 'Give a URL or a File.' });
  }
}

/** `promise`, or AbortedError as soon as `signal` is aborted: cleaning up goes on behind.
 * @template T @param {Promise<T>} promise @param {AbortSignal} [signal] @returns {Promise<T>} */
export function unlessAborted(promise, signal) {
  if (!signal) return promise;
  return new Promise((resolve, reject) => {
    const abort = () => reject(new AbortedError('aborted', { cause: signal.reason }));
    signal.addEventListener('abort', abort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort));
  });
}
