// Fanlight for a web page: a model's pipeline in two hidden workers, one with Python (it compiles, tokenises and
// decides), one without (it downloads, holds weights and runs). Both start with the first pipeline and are shared
// by all. This file knows no models and computes nothing.
//
//   import { pipeline } from './fanlight.js';
//   const generator = await pipeline('text-generation', 'https://…/model.gguf', { progress: console.log });
//   for await (const piece of generator('What is the capital of France?')) show(piece);
//   const { text } = await generator([{ role: 'user', content: 'And of Italy?' }], { max_new_tokens: 20 });
//   await generator.dispose();
//
//   const session = await InferenceSession.create('https://…/model.onnx', { executionProviders: ['webgpu', 'wasm'] });
//   const { logits } = await session.run({ input_ids: { data: new BigInt64Array([101n, 102n]), dims: [1, 2] } });
//   await session.dispose();

import { throwIfAborted } from './errors.js';
import { address, starting, unlessAborted, workers } from './page_workers.js';

export * from './errors.js';
export { InferenceSession } from './inference.js';
export { DeviceTensor, Tensor } from './tensor.js';

/** The same as Python's `fanlight.__version__`. */
export const version = '0.1.0';

/**
 * @typedef {object} Progress
 * @property {string} stage `python` (its start), `download` and `load` (bytes), `compile`, `prefill` (tokens),
 *   `warning` (with a `message`)
 * @property {number} done
 * @property {number} total
 * @property {string} [message]
 */
/** @typedef {{role: string, content: string}} Message and what else the model's chat template reads */
/**
 * @typedef {object} PipelineOptions what is not named here goes to the task: for text-generation `context`
 *   (most tokens of prompt and answer), `chunk` and `kv_dtype` (`f32` or `f16`)
 * @property {'auto' | 'webgpu' | 'wasm'} [device] `auto`: WebGPU on a real GPU, else WebAssembly
 * @property {boolean} [relaxed_simd] on WebAssembly: faster, not bit for bit the same everywhere
 * @property {(progress: Progress) => void} [progress]
 * @property {AbortSignal} [signal]
 * @property {number} [context]
 * @property {number} [chunk]
 * @property {string} [kv_dtype]
 */
/**
 * @typedef {object} GenerateOptions
 * @property {number} [max_new_tokens] 256 if absent
 * @property {(progress: Progress) => void} [progress]
 * @property {AbortSignal} [signal] its abort makes the result reject with AbortedError; `abort()` doesn't
 */
/**
 * @typedef {object} Result
 * @property {string} text
 * @property {number[]} tokens
 * @property {number} prompt_tokens how many
 * @property {'stop' | 'length' | 'abort'} finish_reason
 * @property {Record<string, number>} timings prefill_ms, prefill_tok_s, first_token_ms, decode_tok_s
 */
/**
 * @typedef {object} Info what was measured while loading: times in ms, sizes in bytes
 * @property {string} task
 * @property {string} model
 * @property {string} backend `webgpu` or `wasm`
 * @property {string} adapter
 * @property {number} threads
 * @property {number} resident_bytes
 * @property {number} upload_ms
 * @property {number} pipelines_ms
 * @property {number} context most tokens of prompt and answer
 * @property {Record<string, number>} timings python_ms, open_ms, header_ms, compile_ms, tokenizer_ms, load_ms
 * @property {boolean} can_run_sync whether Python can block here
 * @property {boolean} isolated whether the page is cross-origin isolated, which threads need
 */
/** @typedef {{network_bytes: number, cache_bytes: number, requests: number, open_ms: number, download_ms: number}} Stats */
/**
 * @typedef {object} Members
 * @property {Info} info
 * @property {() => Promise<Stats>} stats of the model's file: waits for the end of its download
 * @property {() => Promise<void>} dispose gives all memory back; answers in progress end
 */
/** @typedef {((prompt: string | Message[], options?: GenerateOptions) => Generation) & Members} Generator */
/** @typedef {{file: number, size: number, name: string, identity: string}} OpenedFile */

/**
 * A loaded pipeline: call it with a prompt. Throws the errors of errors.js; each says what to do.
 * @param {string} task so far `text-generation`
 * @param {string | URL | Blob} model a GGUF file: its URL, relative to the page, or a File that the user picked
 * @param {PipelineOptions} [options]
 * @returns {Promise<Generator>}
 */
export async function pipeline(task, model, { device = 'auto', progress = () => {}, signal, ...rest } = {}) {
  throwIfAborted(signal);
  const source = model instanceof Blob ? model : address(model);
  const { executor, python } = workers(); // Python starts now
  /** @type {{loading: number | null}} */
  let resumed = { loading: null };
  const close = async (/** @type {OpenedFile} */ file, /** @type {{pipeline: number} | null} */ made) => {
    if (made) await python.request('dispose', { pipeline: made.pipeline });
    if (resumed.loading !== null) await executor.request('dispose', { loading: resumed.loading });
    await executor.request('dispose', { file: file.file });
  };
  // What goes wrong in one of the two workers stops the other.
  const control = new AbortController();
  const stop = () => control.abort();
  signal?.addEventListener('abort', stop, { once: true });
  const inner = { signal: control.signal, onProgress: progress };
  const opening = executor.request('open', { source }, inner);
  const making = opening.then(async (/** @type {OpenedFile} */ file) => {
    const downloading = executor.request('wait', { file: file.file }, inner);
    const creating = (async () => {
      // What an earlier visit kept is being loaded while Python starts.
      resumed = await executor.request('resume', { file: file.file, task, device, options: rest });
      const { loading } = resumed;
      if (loading !== null) executor.request('loaded', { loading }, { onProgress: progress }).catch(() => {});
      return python.request('create', { task, file, device, options: rest, resumed }, inner);
    })();
    downloading.catch(() => {});
    try {
      const made = await Promise.race([creating, downloading.then(() => creating)]); // the first failure wins
      return { file, made, downloading };
    } catch (error) {
      control.abort();
      await close(file, await creating.catch(() => null));
      throw error;
    }
  });
  making.catch(() => {});
  try {
    const begun = starting(python, progress);
    const { file, made, downloading } = await unlessAborted(Promise.all([making, begun]).then(([done]) => done), signal);
    const status = await begun;
    const { pipeline: handle, info } = made;
    /** @type {Members} */
    const members = {
      info: {
        task, model: file.name, ...info, isolated: globalThis.crossOriginIsolated, can_run_sync: status.can_run_sync,
        timings: { python_ms: status.python_ms, ...info.timings },
      },
      stats: async () => {
        await downloading;
        return (await executor.request('stats')).files[file.file];
      },
      async dispose() {
        control.abort(); // of the rest of the download
        await close(file, made);
      },
    };
    const generate = (/** @type {string | Message[]} */ prompt, /** @type {GenerateOptions} */ options = {}) =>
      new Generation(python, handle, prompt, options);
    return Object.assign(generate, members);
  } catch (error) {
    control.abort();
    making.then(({ file, made }) => close(file, made)).catch(() => {}); // it came too late
    throw error;
  } finally {
    signal?.removeEventListener('abort', stop);
  }
}

/** Starts the workers and Python ahead of the first pipeline, which is then ready sooner. Needs no call.
 * @param {(progress: Progress) => void} [progress] */
export async function start(progress = () => {}) {
  await starting(workers().python, progress);
}

/** @typedef {{url: string, size: number | null, have: number, complete: boolean, last_used: number}} KeptModel
 *   bytes; `have` of them are here; `last_used` in ms since 1970 */

/** The models' files that this browser keeps for the next visit. */
export const kept = {
  /** @returns {Promise<KeptModel[]>} */
  list: () => workers().executor.request('list'),
  /** Deletes one; no error where it isn't there. @param {string | URL} model @returns {Promise<void>} */
  remove: (model) => workers().executor.request('remove', { url: address(model) }),
  /** Deletes all. @returns {Promise<void>} */
  clear: () => workers().executor.request('remove', {}),
};

/** An answer in the making: iterate over its pieces of text, or await it for the whole. Leaving a loop early
 * aborts it. */
export class Generation {
  /** The text so far. */
  text = '';
  #pieces = /** @type {string[]} */ ([]);
  #ended = false;
  #control = new AbortController();
  #wake = () => {};
  #news = /** @type {Promise<void>} */ (Promise.resolve());

  /** @param {import('./protocol.js').Channel} python @param {number} pipeline @param {string | Message[]} prompt @param {GenerateOptions} options */
  constructor(python, pipeline, prompt, { signal, progress, ...options }) {
    this.#renew();
    const fields = { pipeline, prompt, options };
    /** The whole answer. @type {Promise<Result>} */
    this.result = this.#run(python, fields, progress, signal);
    this.result.catch(() => {}); // whoever iterates hears of it, too
  }

  /** @param {import('./protocol.js').Channel} python @param {object} fields @param {((progress: Progress) => void) | undefined} onProgress
   * @param {AbortSignal} [signal] */
  async #run(python, fields, onProgress, signal) {
    const onChunk = (/** @type {string} */ piece) => {
      this.text += piece;
      this.#pieces.push(piece);
      this.#renew();
    };
    const stop = () => this.abort();
    signal?.addEventListener('abort', stop, { once: true });
    try {
      throwIfAborted(signal);
      const result = await python.request('generate', fields, { signal: this.#control.signal, onProgress, onChunk });
      throwIfAborted(signal);
      return result;
    } finally {
      signal?.removeEventListener('abort', stop);
      this.#ended = true;
      this.#renew();
    }
  }

  /** Ends the answer soon; the result then holds what there is, with the finish reason `abort`. */
  abort() {
    this.#control.abort();
  }

  /** @returns {AsyncGenerator<string, void, void>} */
  async *[Symbol.asyncIterator]() {
    let next = 0;
    try {
      while (true) {
        while (next < this.#pieces.length) yield this.#pieces[next++];
        if (this.#ended) break;
        await this.#news;
      }
      await this.result;
    } finally {
      this.abort();
    }
  }

  /**
   * @template T, U
   * @param {((result: Result) => T | PromiseLike<T>) | null} [done]
   * @param {((error: any) => U | PromiseLike<U>) | null} [failed]
   */
  then(done, failed) {
    return this.result.then(done, failed);
  }

  #renew() {
    this.#wake();
    this.#news = new Promise((resolve) => {
      this.#wake = resolve;
    });
  }
}
