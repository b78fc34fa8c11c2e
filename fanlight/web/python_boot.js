// Boots Pyodide with Fanlight imported: from a snapshot of its memory where the bundle has one that fits, else
// plainly, which takes some seconds. Everything comes from beside this file. Knows no requests.

import { StoreError } from './errors.js';
import { unpack } from './snapshot.js';
import { loadPyodide } from './vendor/pyodide/pyodide.mjs';

/** @typedef {Awaited<ReturnType<typeof loadPyodide>>} Python */
/** @typedef {import('./bundle.js').Bundle} Bundle */

/** Where Python finds Fanlight, here and when the snapshot was made. */
export const PACKAGE = '/fanlight.zip';

const place = (/** @type {string} */ path) => new URL(path, import.meta.url).href;

/**
 * Python with `fanlight` importable; `snapshot` says whether it came from one, in which all of it is imported.
 * @param {Bundle} bundle
 * @returns {Promise<{python: Python, snapshot: boolean}>}
 */
export async function boot({ python: made }) {
  const snapshot = 'Suspending' in WebAssembly ? made.jspi : made.plain;
  if (snapshot && typeof DecompressionStream !== 'undefined') {
    try {
      return { python: await restore(snapshot, made.zip), snapshot: true };
    } catch (error) {
      console.warn('Python starts without its snapshot:', error);
    }
  }
  const zipped = body(made.zip).catch(() => body('./vendor/fanlight.zip'));
  const [python, zip] = await Promise.all([loadPyodide(settings()), zipped]);
  python.FS.writeFile(PACKAGE, zip);
  python.runPython(`import sys; sys.path.insert(0, "${PACKAGE}")`);
  return { python, snapshot: false };
}

/** @param {string} snapshot @param {string} zip */
async function restore(snapshot, zip) {
  const memory = ask(snapshot).then(async (response) => {
    if (response.headers.get('x-fanlight-unpacked')) return unpack(await response.arrayBuffer()); // by the service worker
    const stream = /** @type {ReadableStream} */ (response.body).pipeThrough(new DecompressionStream('gzip'));
    return unpack(await new Response(stream).arrayBuffer());
  });
  memory.catch(() => {}); // loadPyodide reports it
  const [python, files] = await Promise.all([loadPyodide({ ...settings(), _loadSnapshot: memory }), body(zip)]);
  /** @type {any} */ ((await memory).buffer).transfer?.(0); // Pyodide's settings hold on to it
  python.FS.writeFile(PACKAGE, files); // for tracebacks, and for what imports itself late
  python.runPython('import random; random.seed()'); // or everybody's would be the same
  return python;
}

function settings() {
  return { indexURL: place('./vendor/pyodide/'), checkAPIVersion: true };
}

/** @param {string} path */
async function ask(path) {
  const response = await fetch(place(path));
  if (!response.ok) throw new StoreError(`the server answered ${response.status}`, { where: place(path) });
  return response;
}

/** @param {string} path */
async function body(path) {
  return new Uint8Array(await (await ask(path)).arrayBuffer());
}
