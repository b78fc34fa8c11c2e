// Executor of wasm plans. In: a plan and its files. Out: a session with run, read, repeat and
// dispose. One memory holds everything, at offsets fixed at load but for buffers of free size, which
// lie behind the others, where a run's dims put them; JavaScript enters the module once
// per program and all threads walk its steps inside. Thread 0 is the worker that this runs in, the
// others are wasm_thread.js. Knows nothing of models.

import { DeviceError, PlanError, throwIfAborted } from './errors.js';
import { STAGING, readPlan } from './plan.js';
import { Turns, checkDims, checkFeeds, checkRange, hostDims, newName, programOf } from './session.js';
import { Stopwatch } from './timing.js';
import { WasmMemory } from './wasm_memory.js';
import { weightBytes, weightChunks } from './weights.js';

/** @typedef {import('./plan.js').Plan} Plan */
/** @typedef {import('./plan.js').WasmModule} WasmModule */
/** @typedef {import('./session.js').Progress} Progress */
/** @typedef {import('./weights.js').File} File */
/**
 * @typedef {{run(program: number, tid: number, threads: number): void, start(program: number, threads: number): void, quit(): void}} Exports
 */

const MOST_THREADS = 8;
/** The largest piece of a weight that is copied at once. */
const CHUNK = 4 << 20;

/** Whether memory can be shared with other workers here. */
export function canShareMemory() {
  return typeof SharedArrayBuffer !== 'undefined' && globalThis.crossOriginIsolated !== false;
}

/**
 * Loads a plan: weights resident, threads waiting. Throws PlanError, DeviceError, StoreError,
 * AbortedError;
 * then nothing is left behind.
 * @param {ArrayBuffer | Uint8Array} planBytes @param {Map<string, File>} files
 * @param {import('./session.js').LoadOptions} [options] @returns {Promise<WasmSession>}
 */
export async function load(planBytes, files, { progress, signal, threads } = {}) {
  const plan = readPlan(planBytes);
  if (plan.target !== 'wasm' || !plan.wasm)
    throw new PlanError('not a plan for wasm', { got: plan.target });
  if (plan.wasm.threads && !canShareMemory()) {
    throw new PlanError('the plan was compiled for threads, but this page can not share memory', {
      hint: 'Compile without threads, or serve the page with cross-origin isolation.',
    });
  }
  throwIfAborted(signal);
  const session = new WasmSession(plan, plan.wasm, threadCount(plan, threads));
  try {
    await session.load(files, progress ?? (() => {}), signal);
    return session;
  } catch (error) {
    await session.dispose();
    throw error;
  }
}

/** @param {Plan} plan @param {number} [wanted] */
function threadCount(plan, wanted) {
  if (!plan.wasm?.threads) return 1;
  const most = plan.maxima.get('threads') ?? Infinity;
  return Math.max(
    1,
    Math.min(wanted ?? Math.min(navigator.hardwareConcurrency, MOST_THREADS), most),
  );
}

/** A loaded plan; session.js says what the calls promise. */
export class WasmSession {
  #turns = new Turns();
  /** @type {Worker[]} */
  #workers = [];
  /** @type {Exports | null} */
  #exports = null;
  /** @type {DeviceError | null} */
  #failure = null;
  /** @type {Stopwatch | null} of a profile in progress */
  #stopwatch = null;
  /** @type {Map<string, Uint8Array<ArrayBuffer>>} beside the module's memory */
  #held = new Map();

  /** @param {Plan} plan @param {WasmModule} module @param {number} threads */
  constructor(plan, module, threads) {
    this.plan = plan;
    this.module = module;
    this.threads = threads;
    const hostDims = [...plan.dims.values()].filter((d) => d.kind === 'host');
    /** @type {Map<string, number>} host dim → its address */
    this.dimsAt = new Map(hostDims.map(({ name }, i) => [name, module.dims_at + 4 * i]));
    this.mem = new WasmMemory(plan, module, threads);
    /** @type {import('./session.js').SessionInfo} */
    this.info = {
      backend: 'wasm',
      adapter: `${threads} thread${threads > 1 ? 's' : ''}`,
      resident_bytes: this.mem.end,
      upload_ms: 0,
      pipelines_ms: 0,
      threads,
      growths: 0,
      extra: {},
    };
  }

  /** @returns {Map<string, number>} the host dims now, as the module has them */
  #values() {
    const at = (/** @type {string} */ name) => /** @type {number} */ (this.dimsAt.get(name));
    return new Map(hostDims(this.plan).map((n) => [n, this.mem.view.getUint32(at(n), true)]));
  }

  // --- load

  /**
   * @param {Map<string, File>} files
   * @param {(progress: Progress) => void} progress
   * @param {AbortSignal} [signal]
   */
  async load(files, progress, signal) {
    const begin = performance.now();
    await this.#instantiate();
    this.info.pipelines_ms = performance.now() - begin;
    progress({ stage: 'compile', done: 1, total: 1 });
    await this.#upload(files, progress, signal);
    this.info.upload_ms = performance.now() - begin - this.info.pipelines_ms;
    for (const [name, at] of this.dimsAt) {
      const { max, free } = /** @type {import('./plan.js').DimSpec} */ (this.plan.dims.get(name));
      this.#setDim(at, name === 'threads' ? this.threads : free ? 0 : max);
    }
    if (this.plan.programs.has('load')) await this.run('load');
  }

  async #instantiate() {
    const { module, plan } = this;
    const { memory } = this.mem;
    let compiled;
    try {
      compiled = await WebAssembly.compile(
        /** @type {Uint8Array<ArrayBuffer>} */ (plan.segments[module.segment]),
      );
      const mark = (/** @type {number} */ kernel) => this.#stopwatch?.mark(kernel);
      const instance = await WebAssembly.instantiate(compiled, { env: { memory, mark } });
      this.#exports = /** @type {Exports} */ (/** @type {unknown} */ (instance.exports));
    } catch (cause) {
      throw new PlanError('the WebAssembly module can not be used here', { got: cause, cause });
    }
    const tids = Array.from({ length: this.threads - 1 }, (_, i) => i + 1);
    await Promise.all(tids.map((tid) => this.#startThread(tid, compiled)));
    // The module's own data is in place only now: every instance writes it again.
    this.mem.writeAddresses();
    for (const [name, at] of this.dimsAt) this.#setDim(at, name === 'threads' ? this.threads : 0);
    for (const worker of this.#workers) worker.postMessage('enter');
  }

  /**
   * Resolves when the thread has its instance.
   * @param {number} tid
   * @param {WebAssembly.Module} module
   */
  #startThread(tid, module) {
    const { threads } = this;
    const { memory } = this.mem;
    return new Promise((resolve, reject) => {
      const worker = new Worker(new URL('./wasm_thread.js', import.meta.url), {
        type: 'module',
        name: `thread ${tid}`,
      });
      this.#workers.push(worker);
      worker.onmessage = resolve;
      worker.onerror = (event) => {
        this.#failure = new DeviceError('a thread could not start', {
          where: `thread ${tid}`,
          got: event.message,
        });
        reject(this.#failure);
      };
      worker.postMessage({ module, memory, tid, threads });
    });
  }

  /**
   * @param {Map<string, File>} files
   * @param {(progress: Progress) => void} progress
   * @param {AbortSignal} [signal]
   */
  async #upload(files, progress, signal) {
    const total = weightBytes(this.plan);
    const staging = this.mem.places.get(STAGING) ?? { at: 0, bytes: 0 };
    let done = 0;
    const limit = (/** @type {import('./plan.js').Weight} */ w) =>
      w.steps.length ? staging.bytes : Math.max(CHUNK, w.unit);
    for await (const { weight, index, first, count, bytes } of weightChunks(
      this.plan,
      files,
      limit,
    )) {
      throwIfAborted(signal);
      if (weight.steps.length) {
        this.mem.bytes.set(bytes, staging.at);
        this.mem.bytes.fill(0, staging.at + bytes.length, staging.at + Math.ceil(bytes.length / 4) * 4);
        this.#setDim(this.dimsAt.get('unit_first'), first);
        this.#setDim(this.dimsAt.get('unit_count'), count);
        this.#enter(`load/${index}`);
      } else {
        const place = /** @type {{at: number, bytes: number}} */ (this.mem.places.get(weight.buffer));
        const end = first * weight.unit + bytes.length;
        if (end > place.bytes) {
          throw new PlanError('too many bytes', {
            where: `weight ${weight.name}`,
            got: end,
            wanted: place.bytes,
          });
        }
        this.mem.bytes.set(bytes, place.at + first * weight.unit);
      }
      done += bytes.length;
      progress({ stage: 'load', done, total });
      await macrotask();
    }
  }

  // --- calls

  /** Writes feeds, sets dims, runs to the end. @param {string} program
   * @param {Record<string, import('./session.js').Feed>} [feeds] @param {Record<string, number>} [dims] */
  run(program, feeds = {}, dims = {}) {
    return this.#turns.take(async () => {
      this.#begin(program, feeds, dims);
      this.#enter(program);
    });
  }

  /** As `run`; what each kernel took.
   * @param {string} program @param {Record<string, import('./session.js').Feed>} [feeds]
   * @param {Record<string, number>} [dims] @returns {Promise<import('./timing.js').KernelTime[]>} */
  profile(program, feeds = {}, dims = {}) {
    return this.#turns.take(async () => {
      this.#begin(program, feeds, dims);
      const stopwatch = (this.#stopwatch = new Stopwatch(this.plan));
      try {
        this.#enter(program);
      } finally {
        this.#stopwatch = null;
      }
      return stopwatch.times();
    });
  }

  /**
   * Bytes of a buffer after all earlier runs.
   * @param {string} name
   * @param {number} [offset]
   * @param {number} [length]
   */
  read(name, offset = 0, length) {
    return this.#turns.take(async () => this.#copyOut(name, offset, length));
  }

  /** Copies the first bytes of a buffer; see session.js.
   * @param {string} name @param {number} length @returns {Promise<string>} */
  hold(name, length) {
    return this.#turns.take(async () => {
      const held = newName(this.mem.sizes.bytes);
      this.#held.set(held, this.#copyOut(name, 0, length));
      this.mem.sizes.bytes.set(held, length);
      return held;
    });
  }

  /** Gives a held buffer back. @param {string} held */
  async release(held) {
    if (this.#held.delete(held)) this.mem.sizes.bytes.delete(held);
  }

  /** The host dims after all earlier runs. @returns {Promise<Record<string, number>>} */
  dims() {
    return this.#turns.take(async () => Object.fromEntries(this.#values()));
  }

  /**
   * Runs `program` up to `times` times; `onChunk` gets the bytes of `read` after each. Stops where
   * it returns
   * false; throws AbortedError where `signal` is aborted.
   * @param {string} program
   * @param {number} times
   * @param {string} read
   * @param {Record<string, number>} dims
   * @param {(bytes: Uint8Array<ArrayBuffer>) => unknown} onChunk @param {AbortSignal} [signal] */
  repeat(program, times, read, dims, onChunk, signal) {
    return this.#turns.take(async () => {
      this.#begin(program, {}, dims);
      for (let i = 0; i < times && !signal?.aborted; i++) {
        this.#enter(program);
        if (onChunk(this.#copyOut(read, 0)) === false) break;
        await macrotask();
      }
      throwIfAborted(signal);
    });
  }

  /** Ends the threads, after the call in progress; the memory goes with the session. */
  async dispose() {
    await this.#turns.close();
    if (this.#workers.length) this.#exports?.quit();
    for (const worker of this.#workers) worker.terminate();
    this.#workers.length = 0;
    this.#exports = null;
  }

  /**
   * @param {string} program
   * @param {Record<string, import('./session.js').Feed>} feeds
   * @param {Record<string, number>} dims
   */
  #begin(program, feeds, dims) {
    programOf(this.plan, program);
    checkDims(this.plan, dims);
    const values = this.#values();
    try {
      this.mem.sizes.update(new Map([...values, ...Object.entries(dims)]));
      checkFeeds(this.plan, feeds, (name) => this.mem.sizes.bytes.get(name));
      if (this.mem.move()) {
        this.info.growths += 1;
        this.info.resident_bytes = this.mem.memory.buffer.byteLength;
      }
    } catch (error) {
      this.mem.sizes.update(values);
      this.mem.layOutFree();
      throw error;
    }
    for (const [name, value] of Object.entries(dims)) this.#setDim(this.dimsAt.get(name), value);
    for (const [name, feed] of Object.entries(feeds)) {
      const bytes = typeof feed === 'string' ? this.#held.get(feed) : feed;
      this.mem.bytes.set(/** @type {Uint8Array} */ (bytes), this.mem.places.get(name)?.at);
    }
  }

  /** Runs an entry of the module on all threads. @param {string} name */
  #enter(name) {
    if (this.#failure) throw this.#failure;
    const number = this.module.entries.indexOf(name);
    if (number < 0) throw new PlanError('the module has no such entry', { got: name });
    const exports = /** @type {Exports} */ (this.#exports);
    try {
      if (this.threads > 1) exports.start(number, this.threads);
      else exports.run(number, 0, 1);
    } catch (cause) {
      this.#failure = new DeviceError('the module stopped', {
        where: `program ${name}`,
        got: cause,
        cause,
        hint: 'Load the model again.',
      });
      throw this.#failure;
    }
  }

  /** @param {number | undefined} at @param {number} value */
  #setDim(at, value) {
    if (at !== undefined) this.mem.view.setUint32(at, value, true);
  }

  /** @param {string} name @param {number} offset @param {number} [length] */
  #copyOut(name, offset, length) {
    const held = this.#held.get(name);
    if (held) {
      const wanted = checkRange(name, held.length, offset, length);
      return held.slice(offset, offset + wanted);
    }
    const place = this.mem.places.get(name);
    const wanted = checkRange(name, place?.bytes, offset, length);
    const at = (place?.at ?? 0) + offset;
    const copy = new Uint8Array(wanted);
    copy.set(this.mem.bytes.subarray(at, at + wanted));
    return copy;
  }
}

const { port1, port2 } = new MessageChannel();
/** @type {(() => void)[]} */
const waiting = [];
port1.onmessage = () => waiting.shift()?.();
/** @type {any} */ (port1).unref?.(); // node would wait for it

/**
 * Resolves after the messages that are waiting were handled; unlike a timeout it is never slowed
 * down.
 */
function macrotask() {
  return new Promise((resolve) => {
    waiting.push(() => resolve(undefined));
    port2.postMessage(0);
  });
}
