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
import { DeviceTensor, Tensor, asTensor, byteLength, tensorOf } from './tensor.js';

/** @typedef {import('./signature.js').Described} Described */
/** @typedef {import('./signature.js').TensorInfo} TensorInfo */
/** @typedef {import('./tensor.js').TypedArray} TypedArray */
/** @typedef {Tensor | DeviceTensor | TypedArray | {data: TypedArray, dims: readonly number[], type?: string}} Feed */
/** @typedef {Tensor | 'device' | null} Target where an output goes: a tensor's data; it stays on the device; a new Tensor */
/**
 * @typedef {object} SessionOptions
 * @property {('webgpu' | 'wasm')[]} [executionProviders] the preferred one first; webgpu is passed over where
 *   it is no real GPU or lacks something that the model needs, and wasm follows
 * @property {Record<string, number>} [freeDimensionOverrides] symbol → size, fixed while compiling
 * @property {boolean} [relaxed_simd] on WebAssembly: faster, not bit for bit the same everywhere; true if not given
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
 * @property {{program: string, reads: Record<string, string>}[]} stages programs in their order, and the sizes to
 *   read behind each: symbol → buffer
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
      executionProviders = ['webgpu', 'wasm'], freeDimensionOverrides = {}, relaxed_simd = true,
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
   * @param {string[] | Record<string, Target> | null} [fetches] names of the outputs that are wanted, all if left
   *   out; an object may give the tensor whose data an output goes to, null, or `'device'`: that output stays there,
   *   as a DeviceTensor
   * @param {{signal?: AbortSignal}} [options]
   * @returns {Promise<Record<string, any>>} Tensors, and DeviceTensors where asked for
   */
  run(feeds, fetches = null, { signal } = {}) {
    return this.#turns.take(async () => {
      const { inputs, maxima, handle, bounded, stages } = this.#loaded;
      const { executor } = this.#workers;
      const wanted = this.#fetches(fetches);
      const tensors = this.#tensors(feeds);
      const most = new Map(Object.entries(maxima));
      let dims = dimsOfFeeds(inputs, most, tensors);
      throwIfAborted(signal);
      const used = inputs.filter(({ buffer }) => buffer !== null).map(({ name, buffer }) => {
        const tensor = /** @type {Tensor | DeviceTensor} */ (tensors.get(name));
        if (tensor instanceof DeviceTensor) return [buffer, tensor.held];
        const { data } = tensor;
        return [buffer, new Uint8Array(data.buffer, data.byteOffset, data.byteLength)];
      });
      let given = Object.fromEntries(used);
      for (const { program, reads } of stages) {
        const known = Object.fromEntries([...dims].filter(([name]) => most.has(name)));
        await executor.request('run', { session: handle, program, feeds: given, dims: known }, { signal });
        given = {};
        for (const [name, buffer] of Object.entries(reads))
          dims.set(name, await this.#size(name, buffer, most.get(name) ?? 0));
      }
      if (bounded) {
        const read = await executor.request('dims', { session: handle });
        dims = new Map([...dims, ...Object.entries(/** @type {Record<string, number>} */ (read))]);
      }
      const results = await Promise.all(wanted.map(([info, target]) => this.#read(info, target, dims)));
      throwIfAborted(signal);
      return Object.fromEntries(wanted.map(([{ name }], i) => [name, results[i]]));
    });
  }

  /** A size that the model has computed. @param {string} name @param {string} buffer @param {number} most */
  async #size(name, buffer, most) {
    const where = { session: this.#loaded.handle, buffer, offset: 0, length: 4 };
    /** @type {Uint8Array<ArrayBuffer>} */
    const bytes = await this.#workers.executor.request('readBuffer', where);
    const size = new DataView(bytes.buffer, bytes.byteOffset).getInt32(0, true);
    if (size >= 0 && size <= most) return size;
    const wanted = `0 to ${most}`;
    throw new InputError('the model made a size that can not be', { where: `size ${name}`, got: size, wanted });
  }

  /** Gives all memory back, after the run in progress. */
  async dispose() {
    await this.#turns.close();
    await this.#workers.python.request('dispose', { session: this.#loaded.session });
  }

  /** @param {Record<string, Feed>} feeds @returns {Map<string, Tensor | DeviceTensor>} */
  #tensors(feeds) {
    const { inputs } = this.#loaded;
    const names = inputs.map(({ name }) => name);
    for (const name of Object.keys(feeds)) {
      if (!names.includes(name))
        throw new InputError('no such input', { got: name, wanted: names.join(', ') });
    }
    /** @type {Map<string, Tensor | DeviceTensor>} */
    const found = new Map();
    for (const info of inputs) {
      const where = `input ${info.name}`;
      const value = feeds[info.name];
      if (value === undefined)
        throw new InputError('an input is missing', { where, wanted: described(info) });
      if (value instanceof DeviceTensor && value.session !== this.#loaded.handle)
        throw new InputError('a tensor of another session', { where, got: `${value}` });
      found.set(info.name, value instanceof DeviceTensor ? value : asTensor(value, info.type, where));
    }
    return found;
  }

  /** @param {string[] | Record<string, Target> | null} fetches @returns {[Described, Target][]} */
  #fetches(fetches) {
    const { outputs } = this.#loaded;
    const named = Array.isArray(fetches) ? Object.fromEntries(fetches.map((name) => [name, null])) : fetches;
    return Object.entries(named ?? Object.fromEntries(outputs.map(({ name }) => [name, null]))).map(
      ([name, target]) => {
        const info = outputs.find((output) => output.name === name);
        if (typeof target === 'string' && target !== 'device')
          throw new InputError('no place', { where: `output ${name}`, got: target, wanted: 'device' });
        if (info) return [info, target];
        const wanted = outputs.map((output) => output.name).join(', ');
        throw new InputError('no such output', { got: name, wanted });
      },
    );
  }

  /** @param {Described} info @param {Target} target @param {Map<string, number>} dims
   * @returns {Promise<Tensor | DeviceTensor>} */
  async #read({ name, type, sizes, buffer }, target, dims) {
    const shape = sizes.map((size) => evaluate(size, dims, new Map()));
    const length = byteLength(type, shape);
    const where = `output ${name}`;
    const { executor } = this.#workers;
    const session = this.#loaded.handle;
    const whole = Math.ceil(length / 4) * 4;
    if (target === 'device') {
      const held = await executor.request('hold', { session, buffer, length: whole });
      return new DeviceTensor(executor, session, held, type, shape);
    }
    if (target && (target.type !== type || target.data.byteLength !== length)) {
      throw new InputError('memory of another type or size', {
        where, got: `${target}`, wanted: `${type}[${shape.join(', ')}]`,
      });
    }
    /** @type {Uint8Array<ArrayBuffer>} */
    const bytes = length
      ? await executor.request('readBuffer', { session, buffer, offset: 0, length: whole })
      : new Uint8Array();
    if (!target) return tensorOf(bytes, type, shape);
    new Uint8Array(target.data.buffer, target.data.byteOffset, length).set(bytes.subarray(0, length));
    return new Tensor(type, target.data, shape);
  }
}
