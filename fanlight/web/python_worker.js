// Python's worker: boots Pyodide with Fanlight in it and hands requests to fanlight/worker.py, where tasks,
// compiler, tokenisers and stop rules live. In: requests (protocol.js) from the page: `connect` first, with a
// port to the executor's worker, then `status`, `create`, `open_session`,
// `generate`, `dispose`. Everything is loaded from
// beside this file. Knows no models.

import { bundle } from './bundle.js';
import { FanlightError, fromMessage } from './errors.js';
import { Channel } from './protocol.js';
import { boot } from './python_boot.js';
import * as text from './text.js';

/** @typedef {import('./protocol.js').Context} Context */
/** @typedef {{file: number, size: number, name: string}} OpenedFile as the executor's `open` replies */
/** @typedef {{key: string | null, loading: number | null, notes: string | null}} Resumed as its `resume` replies */
/** @typedef {ReturnType<typeof text.restoreTokenizer>} Encoder */
/** @typedef {{key?: string, loading?: number, notes: string, encoder?: Encoder}} Kept what is undefined is Python's None */
/**
 * @typedef {object} PythonWorker fanlight.worker.Worker
 * @property {(number: number, request: string, fields: string, emit: (kind: string, json: string) => void) =>
 *   PromiseLike<string>} serve
 * @property {(number: number) => void} abort
 */

/** What Python imports as `fanlight_js`. `opened`: files that the page has opened already, by model name. */
const bridge = {
  ...text,
  executor: /** @type {Channel | null} */ (null),
  /** @type {Map<string, OpenedFile & {kept: Kept}>} */
  opened: new Map(),
  /** Keeps a session's plan, `notes` and the tokenizer for later visits: as bytes, which move, and without a way
   * through Python, where a text of some megabytes would be copied four times.
   * @param {number} session @param {string} key @param {string} notes @param {Encoder} encoder */
  async keep(session, key, notes, encoder) {
    const bytes = new TextEncoder().encode(`${notes}\n${encoder.dump()}`);
    await bridge.executor?.request('keep', { session, key, notes: bytes }, { transfer: [bytes.buffer] });
    text.tellCollector(KEEP_GARBAGE);
  },
};
/** Bytes: what the texts of a tokenizer leave behind, and more. */
const KEEP_GARBAGE = 64 << 20;
let nextNumber = 1;

async function start() {
  const { python, snapshot } = await boot(bundle);
  python.registerJsModule('fanlight_js', bridge);
  const worker = python.runPython('from fanlight.worker import Worker; Worker()');
  const sync = python.runPython('from pyodide.ffi import can_run_sync; can_run_sync()');
  const version = python.runPython('import fanlight; fanlight.__version__');
  const status = { python_ms: performance.now(), can_run_sync: sync, version, snapshot };
  return { worker: /** @type {PythonWorker} */ (worker), status };
}

const started = start().catch((cause) => {
  throw new FanlightError('Python did not start', {
    got: cause?.message ?? cause, cause, hint: 'Reload the page; all files of fanlight/web must be served beside each other.',
  });
});
started.catch(() => {}); // every request reports it

/** The notes' first line is Python's, the second the tokenizer's, which is made here while Python starts.
 * @param {Resumed} resumed @returns {Kept} */
function unpack({ key, loading, notes }) {
  const [line, dump] = notes?.split('\n') ?? ['', ''];
  const encoder = dump ? text.restoreTokenizer(dump) : undefined;
  return { key: key ?? undefined, loading: loading ?? undefined, notes: line, encoder };
}

/** @param {string} request @param {object} fields @param {Context} context */
async function serve(request, fields, { signal, progress, chunk }) {
  const { worker } = await started;
  const number = nextNumber++;
  const abort = () => worker.abort(number);
  const emit = (/** @type {string} */ kind, /** @type {string} */ json) => {
    (kind === 'chunk' ? chunk : progress)(JSON.parse(json));
  };
  signal.addEventListener('abort', abort);
  try {
    const reply = worker.serve(number, request, JSON.stringify(fields), emit);
    if (signal.aborted) abort();
    const { value, error } = JSON.parse(await reply);
    if (error) throw fromMessage(error);
    return value;
  } finally {
    signal.removeEventListener('abort', abort);
  }
}

new Channel(/** @type {any} */ (self), {
  /** {port} → null. */
  connect({ port }) {
    bridge.executor = new Channel(port);
    return null;
  },

  /** → {python_ms, can_run_sync, version, snapshot}, once Python is ready. */
  async status() {
    return (await started).status;
  },

  /** {task, file, device, options, resumed} → see fanlight/worker.py; `file` and `resumed` are what the executor's
   * `open` and `resume` replied. */
  async create({ task, file, device, options, resumed }, context) {
    const model = `opened:${file.file}`;
    bridge.opened.set(model, { ...file, kept: unpack(resumed) });
    try {
      return await serve('create', { task, model, device, options }, context);
    } finally {
      bridge.opened.delete(model);
    }
  },

  /** {file, model, providers, overrides, relaxed_simd} → see fanlight/worker.py; `file` is what the executor's
   * `open` replied, `model` its URL, or a name for it. */
  async open_session({ file, ...fields }, context) {
    bridge.opened.set(fields.model, { ...file, kept: unpack({ key: null, loading: null, notes: null }) });
    try {
      return await serve('open_session', fields, context);
    } finally {
      bridge.opened.delete(fields.model);
    }
  },

  generate: (fields, context) => serve('generate', fields, context),
  dispose: (fields, context) => serve('dispose', fields, context),
});
