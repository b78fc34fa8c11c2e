// Any ONNX model in a page: tensors in, tensors out. Python compiles it in its worker; runs go straight
// to the executor's worker. The Python twin is fanlight/inference/session.py.
//
//   const session = await InferenceSession.create('https://…/model.onnx');
//   const { logits } = await session.run({ input_ids: { data: new BigInt64Array(7), dims: [1, 7] } });

import { InputError, throwIfAborted } from './errors.js';
import { address, starting, unlessAborted, workers } from './page_workers.js';
import { Turns } from './session.js';
import { described, dimsOfFeeds } from './signature.js';
import { evaluate } from './sizes.js';
import { TYPES, Tensor, asTensor, byteLength } from './tensor.js';

/** @typedef {import('./signature.js').Described} Described */
/** @typedef {import('./signature.js').TensorInfo} TensorInfo */
/** @typedef {import('./tensor.js').TypedArray} TypedArray */
/** @typedef {Tensor | TypedArray | {data: TypedArray, dims: readonly number[], type?: string}} Feed */
/**
 * @typedef {object} SessionOptions
 * @property {('webgpu' | 'wasm')[]} [executionProviders] the preferred one first; webgpu is passed over where
 *   it is no real GPU or lacks something that the model needs, and wasm follows
 * @property {Record<string, number>} [freeDimensionOverrides] symbol → size, fixed while compiling
 * @property {boolean} [relaxed_simd] on WebAssembly: faster, not bit for bit the same everywhere
 * @property {(progress: import('./fanlight.js').Progress) => void} [progress]
 * @property {AbortSignal} [signal]
 */
/**
 * @typedef {object} Loaded what Python replies
 * @property {number} session Python's number
 * @property {number} handle the executor's
 * @property {import('./session.js').SessionInfo} info
 * @property {Described[]} inputs
 * @property {Described[]} outputs
 * @property {Record<string, number>} maxima of the plan's host dims
 * @property {boolean} bounded whether programs read dims back
 * @property {Record<string, unknown>} metadata
 */

/** A loaded model. */
export class InferenceSession {
  #loaded;
  #workers;
  #turns = new Turns();

  /** Use `create`. @param {Loaded} loaded @param {import('./page_workers.js').Workers} workers */
  constructor(loaded, workers) {
    this.#loaded = loaded;
    this.#workers = workers;
    /** @type {TensorInfo[]} in the model's order */
    this.inputs = loaded.inputs.map(({ name, type, shape }) => ({ name, type, shape }));
    /** @type {TensorInfo[]} */
    this.outputs = loaded.outputs.map(({ name, type, shape }) => ({ name, type, shape }));
    /** What the model says of itself. */
    this.metadata = loaded.metadata;
    this.info = loaded.info;
  }

  /**
   * Loads a model. Throws the errors of errors.js; each says what to do.
   * @param {string | URL | Blob | ArrayBuffer | Uint8Array<ArrayBuffer>} model external data lie beside its URL
   * @param {SessionOptions} [options]
   * @returns {Promise<InferenceSession>}
   */
  static async create(model, options = {}) {
    const {
      executionProviders = ['webgpu', 'wasm'], freeDimensionOverrides = {}, relaxed_simd = false,
      progress = () => {}, signal, ...unknown
    } = options;
    for (const name of Object.keys(unknown)) throw new InputError('unknown option', { got: name });
    throwIfAborted(signal);
    const both = workers();
    const { executor, python } = both;
    const bytes = model instanceof ArrayBuffer || ArrayBuffer.isView(model);
    const blob = bytes ? new Blob([model]) : model;
    const inner = { signal, onProgress: progress };
    const making = (async () => {
      const file = blob instanceof Blob ? await executor.request('open', { source: blob }, inner) : null;
      try {
        return /** @type {Loaded} */ (await python.request('open_session', {
          file, model: file ? '' : address(/** @type {string | URL} */ (blob)),
          providers: executionProviders, overrides: freeDimensionOverrides, relaxed_simd,
        }, inner));
      } finally {
        if (file) await executor.request('dispose', { file: file.file });
      }
    })();
    making.catch(() => {});
    try {
      await unlessAborted(starting(python, progress), signal);
      return new InferenceSession(await unlessAborted(making, signal), both);
    } catch (error) {
      making.then(({ session }) => python.request('dispose', { session })).catch(() => {}); // it came too late
      throw error;
    }
  }

  /**
   * The outputs by name.
   * @param {Record<string, Feed>} feeds
   * @param {string[] | Record<string, Tensor | null> | null} [fetches] names of the outputs that are wanted,
   *   all if left out; an object may give the tensor whose data an output goes to, or null
   * @param {{signal?: AbortSignal}} [options]
   * @returns {Promise<Record<string, Tensor>>}
   */
  run(feeds, fetches = null, { signal } = {}) {
    return this.#turns.take(async () => {
      const { inputs, maxima, handle, bounded } = this.#loaded;
      const { executor } = this.#workers;
      const wanted = this.#fetches(fetches);
      const tensors = this.#tensors(feeds);
      const most = new Map(Object.entries(maxima));
      let dims = dimsOfFeeds(inputs, most, tensors);
      throwIfAborted(signal);
      const used = inputs.filter(({ buffer }) => buffer !== null).map(({ name, buffer }) => {
        const { data } = /** @type {Tensor} */ (tensors.get(name));
        return [buffer, new Uint8Array(data.buffer, data.byteOffset, data.byteLength)];
      });
      await executor.request('run', {
        session: handle, program: 'main', feeds: Object.fromEntries(used),
        dims: Object.fromEntries([...dims].filter(([name]) => most.has(name))),
      }, { signal });
      if (bounded) {
        const read = await executor.request('dims', { session: handle });
        dims = new Map([...dims, ...Object.entries(/** @type {Record<string, number>} */ (read))]);
      }
      const results = await Promise.all(wanted.map(([info, target]) => this.#read(info, target, dims)));
      throwIfAborted(signal);
      return Object.fromEntries(wanted.map(([{ name }], i) => [name, results[i]]));
    });
  }

  /** Gives all memory back, after the run in progress. */
  async dispose() {
    await this.#turns.close();
    await this.#workers.python.request('dispose', { session: this.#loaded.session });
  }

  /** @param {Record<string, Feed>} feeds @returns {Map<string, Tensor>} */
  #tensors(feeds) {
    const { inputs } = this.#loaded;
    const names = inputs.map(({ name }) => name);
    for (const name of Object.keys(feeds)) {
      if (!names.includes(name))
        throw new InputError('no such input', { got: name, wanted: names.join(', ') });
    }
    return new Map(inputs.map((info) => {
      const where = `input ${info.name}`;
      const value = feeds[info.name];
      if (value === undefined)
        throw new InputError('an input is missing', { where, wanted: described(info) });
      return [info.name, asTensor(value, info.type, where)];
    }));
  }

  /** @param {string[] | Record<string, Tensor | null> | null} fetches @returns {[Described, Tensor | null][]} */
  #fetches(fetches) {
    const { outputs } = this.#loaded;
    const named = Array.isArray(fetches) ? Object.fromEntries(fetches.map((name) => [name, null])) : fetches;
    return Object.entries(named ?? Object.fromEntries(outputs.map(({ name }) => [name, null]))).map(
      ([name, target]) => {
        const info = outputs.find((output) => output.name === name);
        if (info) return [info, target];
        const wanted = outputs.map((output) => output.name).join(', ');
        throw new InputError('no such output', { got: name, wanted });
      },
    );
  }

  /** @param {Described} info @param {Tensor | null} target @param {Map<string, number>} dims @returns {Promise<Tensor>} */
  async #read({ name, type, sizes, buffer }, target, dims) {
    const shape = sizes.map((size) => evaluate(size, dims, new Map()));
    const length = byteLength(type, shape);
    const where = `output ${name}`;
    if (target && (target.type !== type || target.data.byteLength !== length)) {
      throw new InputError('memory of another type or size', {
        where, got: `${target}`, wanted: `${type}[${shape.join(', ')}]`,
      });
    }
    /** @type {Uint8Array<ArrayBuffer>} */
    const bytes = length
      ? await this.#workers.executor.request('readBuffer', {
        session: this.#loaded.handle, buffer, offset: 0, length: Math.ceil(length / 4) * 4,
      })
      : new Uint8Array();
    const { array } = /** @type {{array: import('./tensor.js').TypedArrayClass}} */ (TYPES.get(type));
    if (!target) {
      const each = array === Uint8Array ? 1 : length / Math.max(1, shape.reduce((n, d) => n * d, 1));
      return new Tensor(type, new array(bytes.buffer, bytes.byteOffset, length ? length / each : 0), shape);
    }
    new Uint8Array(target.data.buffer, target.data.byteOffset, length).set(bytes.subarray(0, length));
    return new Tensor(type, target.data, shape);
  }
}
