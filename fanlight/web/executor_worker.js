// The executor's worker: it holds files and sessions and answers requests (protocol.js) from its
// parent and from every port that was connected. It has no Python and knows no models. The requests
// are the keys of HANDLERS; handles are numbers, valid on every port.

import { AbortedError, InputError, throwIfAborted } from './errors.js';
import * as gpu from './gpu.js';
import { adapterName, limitsOf, requestAdapter } from './gpu_device.js';
import { readPlan } from './plan.js';
import { Channel, Transfer } from './protocol.js';
import * as store from './store.js';
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

/** What this browser can do. */
async function probe() {
  const adapter = await requestAdapter();
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
    cores: navigator.hardwareConcurrency,
    memory_gb: /** @type {any} */ (navigator).deviceMemory ?? null,
    storage: (await navigator.storage?.estimate?.()) ?? null,
  };
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
    const given = new Map(
      Object.entries(names).map(([name, handle]) => [name, held(files, handle, 'file')]),
    );
    const executor = readPlan(plan).target === 'webgpu' ? gpu : wasm;
    /** @type {Session} */
    const session = await executor.load(plan, given, { ...options, signal, progress });
    if (signal.aborted) await session.dispose();
    throwIfAborted(signal);
    const handle = nextHandle++;
    sessions.set(handle, session);
    return { session: handle, info: session.info };
  },

  /** {session, program, feeds?: {name: Uint8Array}, dims?} → null. */
  async run({ session, program, feeds, dims }) {
    await held(sessions, session, 'session').run(program, feeds, dims);
    return null;
  },

  /** {session, buffer, offset?, length?} → Uint8Array. */
  async readBuffer({ session, buffer, offset, length }) {
    return moved(await held(sessions, session, 'session').read(buffer, offset, length));
  },

  /** {session, program, times, read, dims?} → null; a chunk (Uint8Array) after each run. */
  async repeat({ session, program, times, read, dims = {} }, { signal, chunk }) {
    const send = (/** @type {Uint8Array<ArrayBuffer>} */ bytes) => chunk(bytes, [bytes.buffer]);
    await held(sessions, session, 'session').repeat(program, times, read, dims, send, signal);
    return null;
  },

  /** {session} or {file} → null; what is gone already is no error. */
  async dispose({ session, file }) {
    const [gone, closed] = [sessions.get(session), files.get(file)];
    sessions.delete(session);
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
    await (url === undefined ? store.clear() : store.remove(url));
    return null;
  },

  /** {port} → null; the port may ask all of these too. */
  connect({ port }) {
    new Channel(port, HANDLERS);
    return null;
  },
};

new Channel(/** @type {any} */ (self), HANDLERS);
