// Any ONNX model in a page: tensors in, tensors out. Python compiles it in its worker; runs go straight
// to the executor's worker. The Python twin is fanlight/inference/session.py.
//
//   const session = await InferenceSession.create('https://…/model.onnx');
//   const { logits } = await session.run({ input_ids: { data: new BigInt64Array(7), dims: [1, 7] } });

import { InputError, PlanError, throwIfAborted } from './errors.js';
import { address, starting, unlessAborted, workers } from './page_workers.js';
import { somethingIsKept } from './plan_store.js';
import { Turns } from './session.js';
import { described, dimsOfFeeds } from './signature.js';
import { evaluate } from './sizes.js';
import { DeviceTensor, Tensor, asTensor, byteLength, tensorOf } from './tensor.js';
import { added } from './timing.js';

/** @typedef {import('./page_workers.js').Workers} Workers */
/** @typedef {import('./signature.js').Described} Described */
/** @typedef {import('./signature.js').TensorInfo} TensorInfo */
/** @typedef {import('./tensor.js').TypedArray} TypedArray */
/** @typedef {import('./timing.js').KernelTime} KernelTime */
/** @typedef {Tensor | DeviceTensor | TypedArray | {data: TypedArray, dims: readonly number[], type?: string}} Feed */
/** @typedef {Tensor | 'device' | null} Target where an output goes: a tensor's data; it stays on the device; a new Tensor */
/**
 * @typedef {object} SessionOptions
 * @property {('webgpu' | 'wasm')[]} [executionProviders] the preferred one first; webgpu is passed over where
 *   it is no real GPU or lacks something that the model needs, and wasm follows
 * @property {Record<string, number>} [freeDimensionOverrides] symbol → size, fixed while compiling
 * @property {boolean} [relaxed_simd] on WebAssembly: faster, not bit for bit the same everywhere; true if not given
 * @property {boolean} [profile] for `profile`; on WebAssembly all runs are a little slower then
 * @property {(progress: import('./fanlight.js').Progress) => void} [progress]
 * @property {AbortSignal} [signal]
 */
/**
 * @typedef {object} Loaded what Python replies
 * @property {number | null} session Python's number; null of a session that started without it
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

  /** Use `create`. @param {Loaded} loaded @param {Workers} workers */
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
      profile = false, progress = () => {}, signal, ...unknown
    } = options;
    for (const name of Object.keys(unknown)) throw new InputError('unknown option', { got: name });
    throwIfAborted(signal);
    const both = workers();
    const bytes = model instanceof ArrayBuffer || ArrayBuffer.isView(model);
    const source = bytes ? new Blob([model]) : model instanceof Blob ? model : address(model);
    const asked = { providers: executionProviders, overrides: freeDimensionOverrides, relaxed_simd, profile };
    const inner = { signal, onProgress: progress };
    const making = (async () => {
      const [identity, kept] = await Promise.all([identityOf(model), somethingIsKept()]);
      if (!kept) starting(both.python, progress).catch(() => {}); // it will be needed: at once
      const file = await both.executor.request('open', { source }, inner);
      try {
        return await load(both, file, source, identity, asked, inner);
      } finally {
        await both.executor.request('dispose', { file: file.file });
      }
    })();
    making.catch(() => {});
    try {
      return new InferenceSession(await unlessAborted(making, signal), both);
    } catch (error) {
      making.then((made) => disposeOf(made, both)).catch(() => {}); // it came too late
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
      const { handle, bounded } = this.#loaded;
      const { executor } = this.#workers;
      const wanted = this.#fetches(fetches);
      const { given, dims } = this.#given(feeds);
      throwIfAborted(signal);
      const { replies } = await this.#runStages('run', given, dims, signal);
      if (bounded) {
        const read = await executor.request('dims', { session: handle });
        for (const [name, size] of Object.entries(/** @type {Record<string, number>} */ (read))) dims.set(name, size);
      }
      // asked for while the last program runs: the executor takes requests in their order
      const reading = Promise.all(wanted.map(([info, target]) => this.#read(info, target, dims)));
      reading.catch(() => {}); // the program's own error comes first
      await Promise.all(replies);
      const results = await reading;
      throwIfAborted(signal);
      return Object.fromEntries(wanted.map(([{ name }], i) => [name, results[i]]));
    });
  }

  /**
   * What each kernel costs in a run, the most costly first: the mean of `runs` runs, after one that warms up. Steps
   * that `run` overlaps come one after the other here. Browsers round a GPU's times to 0.1 ms, so that short kernels
   * need more runs. Only of a session that was created with `{profile: true}`.
   * @param {Record<string, Feed>} feeds
   * @param {{runs?: number, signal?: AbortSignal}} [options]
   * @returns {Promise<KernelTime[]>}
   */
  profile(feeds, { runs = 5, signal } = {}) {
    return this.#turns.take(async () => {
      if (!Number.isInteger(runs) || runs < 1) throw new InputError('not a number of runs', { got: runs });
      const { given, dims } = this.#given(feeds);
      /** @type {KernelTime[]} */
      const rows = [];
      for (let i = 0; i < 1 + runs; i++) {
        throwIfAborted(signal);
        const { replies } = await this.#runStages('profile', given, new Map(dims), signal);
        const found = (await Promise.all(replies)).flat();
        if (i > 0) rows.push(...found);
      }
      return added(rows, runs);
    });
  }

  /** What inputs hold, by buffer, and the dims they show. @param {Record<string, Feed>} feeds */
  #given(feeds) {
    const { inputs, maxima } = this.#loaded;
    const tensors = this.#tensors(feeds);
    const dims = dimsOfFeeds(inputs, new Map(Object.entries(maxima)), tensors);
    const used = inputs.filter(({ buffer }) => buffer !== null).map(({ name, buffer }) => {
      const tensor = /** @type {Tensor | DeviceTensor} */ (tensors.get(name));
      if (tensor instanceof DeviceTensor) return [buffer, tensor.held];
      const { data } = tensor;
      return [buffer, new Uint8Array(data.buffer, data.byteOffset, data.byteLength)];
    });
    return { given: Object.fromEntries(used), dims };
  }

  /**
   * Sends one program after the other; adds the sizes that the model computes to `dims`. What the last one replies is
   * not waited for.
   * @param {'run' | 'profile'} request @param {Record<string, Uint8Array | string>} given
   * @param {Map<string, number>} dims @param {AbortSignal} [signal]
   */
  async #runStages(request, given, dims, signal) {
    const { maxima, handle, stages } = this.#loaded;
    const replies = [];
    for (const [number, { program, reads }] of stages.entries()) {
      const known = Object.fromEntries([...dims].filter(([name]) => name in maxima));
      const fields = { session: handle, program, feeds: number === 0 ? given : {}, dims: known };
      const reply = this.#workers.executor.request(request, fields, { signal });
      reply.catch(() => {}); // whoever waits for the replies hears of it
      replies.push(reply);
      if (!Object.keys(reads).length) continue;
      await reply;
      for (const [name, buffer] of Object.entries(reads))
        dims.set(name, await this.#size(name, buffer, maxima[name] ?? 0));
    }
    return { replies };
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
    await disposeOf(this.#loaded, this.#workers);
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

/** @typedef {{providers: string[], overrides: Record<string, number>, relaxed_simd: boolean, profile: boolean}} Asked */
/** @typedef {{signal?: AbortSignal, onProgress: (progress: any) => void}} Watched */

/**
 * By the plan that an earlier visit kept, without Python; else Python compiles the model, and its plan is kept for the
 * next visit, where it is all that a session needs beside the file.
 * @param {Workers} both @param {import('./fanlight.js').OpenedFile} file @param {string | Blob} source
 * @param {string | null | undefined} identity of the model; null: of one that can't be known again
 * @param {Asked} asked @param {Watched} inner @returns {Promise<Loaded>}
 */
async function load(both, file, source, identity, asked, inner) {
  const { executor } = both;
  const device = asked.providers.includes('webgpu') ? 'auto' : 'wasm';
  const known = { file: file.file, task: 'onnx', device, options: asked, identity };
  const resumed = identity === null ? { key: null, loading: null } : await executor.request('resume', known);
  const { key, loading } = resumed;
  if (loading !== null) {
    try {
      const { session, info } = await executor.request('loaded', { loading }, inner);
      return { session: null, handle: session, info, ...JSON.parse(resumed.notes) };
    } catch (error) {
      await executor.request('dispose', { loading });
      if (!(error instanceof PlanError)) throw error; // such a plan is forgotten; a new one follows
    }
  }
  const model = source instanceof Blob ? `opened:${file.file}` : source;
  const [reply] = await Promise.all([
    both.python.request('open_session', { file, model, ...asked }, inner),
    starting(both.python, inner.onProgress),
  ]);
  const { session, handle, info, external, ...notes } = reply;
  if (key !== null && !external.length) {
    const bytes = new TextEncoder().encode(JSON.stringify(notes));
    await executor.request('keep', { session: handle, key, notes: bytes }, { transfer: [bytes.buffer] });
  }
  return { session, handle, info, ...notes };
}

/** @param {Loaded} made @param {Workers} both */
function disposeOf({ session, handle }, { executor, python }) {
  return session === null ? executor.request('dispose', { session: handle }) : python.request('dispose', { session });
}

/** What `load` takes. @param {unknown} model */
async function identityOf(model) {
  if (typeof model === 'string' || model instanceof URL || model instanceof File) return undefined; // the file has one
  if (model instanceof Blob || !crypto.subtle) return null;
  const bytes = /** @type {ArrayBuffer | Uint8Array<ArrayBuffer>} */ (model);
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, '0')).join('');
}
