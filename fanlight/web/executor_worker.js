// The executor's worker: it holds files and sessions and answers requests (protocol.js) from its
// parent and from every port that was connected. It has no Python and knows no models. The requests
// are the keys of HANDLERS; handles are numbers, valid on every port.

import { bundle } from './bundle.js';
import { AbortedError, InputError, PlanError, throwIfAborted } from './errors.js';
import * as gpu from './gpu.js';
import { adapterName, limitsOf, requestAdapter } from './gpu_device.js';
import { readPlan } from './plan.js';
import * as plans from './plan_store.js';
import { Channel, Transfer } from './protocol.js';
import * as store from './store.js';
import { canKeep } from './store_shelf.js';
import * as wasm from './wasm.js';

/** @typedef {import('./protocol.js').Context} Context */
/** @typedef {import('./protocol.js').Handler} Handler */
/** @typedef {import('./session.js').Session} Session */
/** @typedef {import('./store.js').StoredFile} StoredFile */

/** (func (result v128) (i32x4.relaxed_trunc_f32x4_s (v128.const 0))), as a module. */
const RELAXED_SIMD = Uint8Array.from(
  atob('AGFzbQEAAAABBQFgAAF7AwIBAAoZARcA/QwAAAAAAAAAAAAAAAAAAAAA/YECCw=='),
  (character) => character.charCodeAt(0),
);

/** @type {Map<number, StoredFile>} */
const files = new Map();
/** @type {Map<number, Session>} */
const sessions = new Map();
let nextHandle = 1;

/**
 * @template T
 * @param {Map<number, T>} map
 * @param {number} handle
 * @param {string} what
 * @returns {T}
 */
function held(map, handle, what) {
  const value = map.get(handle);
  if (value !== undefined) return value;
  if (handle < nextHandle) throw new AbortedError(`the ${what} was disposed`);
  throw new InputError(`no such ${what}`, { got: handle });
}

/** @param {Uint8Array<ArrayBuffer>} bytes that nobody else uses */
function moved(bytes) {
  return new Transfer(bytes, [bytes.buffer]);
}

/** @type {Map<number, ArrayBuffer>} plans of sessions, until they are kept */
const planBytes = new Map();
/** @type {Map<number, {loaded: Promise<Loaded>, control: AbortController, listeners: Set<(event: any) => void>}>} */
const loadings = new Map();

/** @typedef {{session: number, info: import('./session.js').SessionInfo}} Loaded */

/** What this browser can do, as far as it matters for `device`. @param {string} device */
async function abilities(device) {
  const adapter = device === 'wasm' ? null : await requestAdapter();
  const webgpu = adapter && {
    name: adapterName(adapter),
    fallback: adapter.info.isFallbackAdapter,
    features: [...adapter.features].sort(),
    limits: limitsOf(adapter),
  };
  return {
    webgpu,
    isolated: globalThis.crossOriginIsolated,
    threads: wasm.canShareMemory(),
    relaxed_simd: WebAssembly.validate(RELAXED_SIMD),
  };
}

/** {device?} → {webgpu, isolated, threads, relaxed_simd, cores, memory_gb, storage}; `webgpu` is null for `wasm`.
 * @type {Handler} */
async function probe({ device = 'auto' }) {
  return {
    ...(await abilities(device)),
    cores: navigator.hardwareConcurrency,
    memory_gb: /** @type {any} */ (navigator).deviceMemory ?? null,
    storage: (await navigator.storage?.estimate?.()) ?? null,
  };
}

/**
 * @param {ArrayBuffer} plan @param {Record<string, number> | number} names the plan's files, or its only one
 * @param {import('./session.js').LoadOptions} options @returns {Promise<Loaded>}
 */
async function load(plan, names, options) {
  const { target, weights } = readPlan(plan);
  const entries = typeof names === 'number'
    ? weights.flatMap(({ source }) => (source.file === undefined ? [] : [[source.file, names]]))
    : Object.entries(names);
  const given = new Map(
    /** @type {[string, number][]} */ (entries).map(([name, handle]) => [name, held(files, handle, 'file')]),
  );
  const executor = target === 'webgpu' ? gpu : wasm;
  /** @type {Session} */
  const session = await executor.load(plan, given, options);
  if (options.signal?.aborted) await session.dispose();
  throwIfAborted(options.signal);
  const handle = nextHandle++;
  sessions.set(handle, session);
  planBytes.set(handle, plan);
  return { session: handle, info: session.info };
}

/** Loads a kept plan in the background. @param {string} key @param {ArrayBuffer} plan @param {number} file */
function begin(key, plan, file) {
  const [control, listeners, handle] = [new AbortController(), new Set(), nextHandle++];
  const progress = (/** @type {any} */ event) => listeners.forEach((listener) => listener(event));
  const loaded = load(plan, file, { signal: control.signal, progress });
  loaded.catch((error) => (error instanceof PlanError ? plans.forget(key) : null)).catch(() => {});
  loadings.set(handle, { loaded, control, listeners });
  return handle;
}

/** @type {Record<string, Handler>} */
const HANDLERS = {
  /**
   * {source: URL or Blob} → {file, size, name, identity}; progress: the download's, until the
   * reply.
   */
  async open({ source }, { signal, progress }) {
    const file = await store.open(source, { signal, progress });
    const handle = nextHandle++;
    files.set(handle, file);
    return { file: handle, size: file.size, name: file.name, identity: file.identity };
  },

  /**
   * {file} → stats, when all is downloaded; progress: the download's. Its abort ends only the
   * waiting.
   */
  async wait({ file }, { signal, progress }) {
    const stored = held(files, file, 'file');
    const silence = stored.listen(progress);
    try {
      await Promise.race([
        stored.done,
        new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason))),
      ]);
      return stored.stats;
    } finally {
      silence();
    }
  },

  /** {file, offset, length} → Uint8Array. */
  async read({ file, offset, length }) {
    return moved(await held(files, file, 'file').read(offset, length));
  },

  probe,

  /**
   * {plan: ArrayBuffer, files: {name: file}, options: {threads?}} → {session, info}; progress:
   * compile, load.
   */
  async load({ plan, files: names, options = {} }, { signal, progress }) {
    return load(plan, names, { ...options, signal, progress });
  },

  /**
   * {file, task, device, options, identity?} → {key, loading, notes}: whether an earlier visit kept a
   * plan for all that; then it is being loaded already. `loading` is null where there is none, `key`
   * where nothing can be kept. `identity`: the file's own if left out.
   */
  async resume({ file, task, device, options, identity = held(files, file, 'file').identity }) {
    if (!canKeep()) return { key: null, loading: null, notes: null };
    const able = await abilities(device);
    const key = await plans.keyOf(bundle.python.id, task, device, options, able, identity);
    const kept = await plans.take(key).catch(() => null); // a store that fails is as an empty one
    if (!kept) return { key, loading: null, notes: null };
    return { key, loading: begin(key, kept.plan, file), notes: kept.notes };
  },

  /** {loading} → {session, info}, as `load`; progress from now on. Its abort ends only the waiting. */
  async loaded({ loading }, { signal, progress }) {
    const { loaded, listeners } = held(loadings, loading, 'loading');
    listeners.add(progress);
    const aborted = new Promise((_, reject) => {
      signal.addEventListener('abort', () => reject(signal.reason), { once: true });
    });
    try {
      return await Promise.race([loaded, aborted]);
    } finally {
      listeners.delete(progress);
    }
  },

  /** {session, key, notes: UTF-8} → null; the session's plan is kept in the background. */
  keep({ session, key, notes }) {
    const plan = planBytes.get(session);
    planBytes.delete(session);
    if (plan) {
      plans.keep(key, { plan, notes }).catch((error) => console.warn('A plan is not kept:', error));
    }
    return null;
  },

  /** {session, program, feeds?: {name: Uint8Array, or a held buffer's name}, dims?} → null. */
  async run({ session, program, feeds, dims }) {
    await held(sessions, session, 'session').run(program, feeds, dims);
    return null;
  },

  /** As `run` → [{kernel, dispatches, ms}], the most costly first. */
  profile({ session, program, feeds, dims }) {
    return held(sessions, session, 'session').profile(program, feeds, dims);
  },

  /** {session, buffer, offset?, length?} → Uint8Array. */
  async readBuffer({ session, buffer, offset, length }) {
    return moved(await held(sessions, session, 'session').read(buffer, offset, length));
  },

  /** {session, buffer, length} → the name of a buffer with a copy that no run changes. */
  hold({ session, buffer, length }) {
    return held(sessions, session, 'session').hold(buffer, length);
  },

  /** {session, held: its name} → null; a session or buffer that is gone already is no error. */
  async release({ session, held: name }) {
    await sessions.get(session)?.release(name);
    return null;
  },

  /** {session} → the host dims after all earlier runs, by name. */
  dims({ session }) {
    return held(sessions, session, 'session').dims();
  },

  /** {session, program, times, read, dims?} → null; a chunk (Uint8Array) after each run. */
  async repeat({ session, program, times, read, dims = {} }, { signal, chunk }) {
    const send = (/** @type {Uint8Array<ArrayBuffer>} */ bytes) => chunk(bytes, [bytes.buffer]);
    await held(sessions, session, 'session').repeat(program, times, read, dims, send, signal);
    return null;
  },

  /** {session}, {file} or {loading}, with its session → null; what is gone already is no error. */
  async dispose({ session, file, loading }) {
    const begun = loadings.get(loading);
    loadings.delete(loading);
    begun?.control.abort();
    session ??= await begun?.loaded.then(({ session }) => session, () => undefined);
    const [gone, closed] = [sessions.get(session), files.get(file)];
    sessions.delete(session);
    planBytes.delete(session);
    files.delete(file);
    await Promise.all([gone?.dispose(), closed?.close()]);
    return null;
  },

  /** → {files: {handle: stats}, sessions: {handle: info}}; times in ms, sizes in bytes. */
  stats() {
    return {
      files: Object.fromEntries([...files].map(([handle, file]) => [handle, file.stats])),
      sessions: Object.fromEntries(
        [...sessions].map(([handle, session]) => [handle, session.info]),
      ),
    };
  },

  /** → what the store keeps: [{url, size, have, complete, last_used}]. */
  list: store.list,

  /** {url?} → null; forgets one file, or all. */
  async remove({ url }) {
    await (url === undefined ? Promise.all([store.clear(), plans.clear()]) : store.remove(url));
    return null;
  },

  /** {port} → null; the port may ask all of these too. */
  connect({ port }) {
    new Channel(port, HANDLERS);
    return null;
  },
};

new Channel(/** @type {any} */ (self), HANDLERS);
