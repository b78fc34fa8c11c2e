// What the two executors share of a session: argument checks, one call at a time, the types that
// callers see.

import { AbortedError, PlanError } from './errors.js';
import { RESERVED_DIMS } from './plan.js';

/** @typedef {import('./plan.js').Plan} Plan */
/** @typedef {import('./weights.js').File} File */
/**
 * @typedef {{stage: string, done: number, total: number}} Progress stage: download, compile, load
 */
/**
 * @typedef {object} SessionInfo times in ms, sizes in bytes
 * @property {string} backend
 * @property {string} adapter
 * @property {number} resident_bytes
 * @property {number} upload_ms
 * @property {number} pipelines_ms
 * @property {number} threads
 * @property {number} growths runs that needed more memory than those before
 * @property {Record<string, number>} extra
 */
/**
 * @typedef {object} LoadOptions
 * @property {(progress: Progress) => void} [progress]
 * @property {AbortSignal} [signal]
 * @property {number} [threads] wasm only
 */
/** @typedef {Uint8Array | string} Feed bytes, or the name of a held buffer */
/**
 * @typedef {object} Session
 * @property {SessionInfo} info
 * @property {(program: string, feeds?: Record<string, Feed>, dims?: Record<string, number>) => Promise<void>} run
 * @property {(program: string, feeds?: Record<string, Feed>, dims?: Record<string, number>) =>
 *   Promise<import('./timing.js').KernelTime[]>} profile as `run`, one step after the other, each timed
 * @property {(buffer: string, offset?: number, length?: number) => Promise<Uint8Array<ArrayBuffer>>} read
 * @property {(program: string, times: number, read: string, dims: Record<string, number>,
 * onChunk: (bytes: Uint8Array<ArrayBuffer>) => unknown, signal?: AbortSignal) => Promise<void>}
 * repeat
 * @property {(buffer: string, length: number) => Promise<string>} hold copies the first bytes of a buffer into
 *   one that later runs leave alone; returns its name, for `read`, feeds and `release`
 * @property {(held: string) => Promise<void>} release
 * @property {() => Promise<Record<string, number>>} dims the host dims after all earlier runs
 * @property {() => Promise<void>} dispose
 */

/** Throws PlanError for dims that a caller may not set, or out of range.
 * @param {Plan} plan @param {Record<string, number>} dims @param {boolean} [read] by the program */
export function checkDims(plan, dims, read = false) {
  for (const [name, value] of Object.entries(dims)) {
    const dim = plan.dims.get(name);
    if (dim?.kind !== 'host' || RESERVED_DIMS.includes(name)) {
      throw new PlanError('not a dim that can be set', { got: name });
    }
    if (dim.bound !== null && !read)
      throw new PlanError('a dim that only the program sets', { where: `dim ${name}`, got: value });
    const most = Math.min(dim.max, 2 ** 31 - 1); // kernels have dims in 32 bits
    if (!Number.isInteger(value) || value < 0 || value > most) {
      throw new PlanError('a dim is out of range', {
        where: `dim ${name}`,
        got: value,
        wanted: `0 to ${most}`,
      });
    }
  }
}

/** Throws PlanError unless `feeds` are inputs and states and fit.
 * @param {Plan} plan
 * @param {Record<string, Feed>} feeds
 * @param {(name: string) => number | undefined} bytesOf
 */
export function checkFeeds(plan, feeds, bytesOf) {
  for (const [name, bytes] of Object.entries(feeds)) {
    const kind = plan.buffers.get(name)?.kind;
    if (kind !== 'input' && kind !== 'state') {
      throw new PlanError('not an input or a state', {
        where: `buffer ${name}`,
        got: kind ?? 'no such buffer',
      });
    }
    const size = typeof bytes === 'string' ? bytesOf(bytes) : bytes.length;
    const wanted = bytesOf(name) ?? 0;
    if (size === undefined) throw new PlanError('the held buffer was released', { got: bytes });
    if (size > wanted)
      throw new PlanError('too many bytes', { where: `buffer ${name}`, got: size, wanted });
  }
}

/**
 * The bytes to read, checked.
 * @param {string} name
 * @param {number | undefined} whole bytes of the buffer
 * @param {number} offset @param {number} [length] @returns {number} */
export function checkRange(name, whole, offset, length) {
  if (whole === undefined) throw new PlanError('no such buffer', { got: name });
  const wanted = length ?? whole - offset;
  if (offset % 4 || (length ?? 0) % 4 || offset < 0 || wanted < 0 || offset + wanted > whole) {
    throw new PlanError('read outside the buffer, or not at multiples of 4', {
      where: `buffer ${name}`,
      got: `${offset}, ${length}`,
      wanted: `within ${whole} bytes`,
    });
  }
  return wanted;
}

/** A name for a held buffer that no other has. @param {Map<string, number>} bytes of all buffers */
export function newName(bytes) {
  let number = bytes.size;
  while (bytes.has(`held.${number}`)) number += 1;
  return `held.${number}`;
}

/** The host dims that a caller knows. @param {Plan} plan @returns {string[]} */
export function hostDims(plan) {
  const dims = [...plan.dims.values()].filter(({ kind }) => kind === 'host');
  return dims.map(({ name }) => name).filter((name) => !RESERVED_DIMS.includes(name));
}

/** The program's steps. @param {Plan} plan @param {string} name */
export function programOf(plan, name) {
  const steps = plan.programs.get(name);
  if (!steps)
    throw new PlanError('no such program', {
      got: name,
      wanted: [...plan.programs.keys()].join(', '),
    });
  return steps;
}

/** Serialises calls; after `close` they end in AbortedError. */
export class Turns {
  /** @type {Promise<unknown>} */
  #last = Promise.resolve();
  closed = false;

  /** @template T @param {() => Promise<T>} work @returns {Promise<T>} */
  take(work) {
    const turn = this.#last.then(() => {
      if (this.closed) throw new AbortedError('the session was disposed');
      return work();
    });
    this.#last = turn.catch(() => {});
    return turn;
  }

  /** Resolves when the calls before have ended. */
  async close() {
    this.closed = true;
    await this.#last;
  }
}
