// Runs Python in Pyodide in Node, with fanlight/web/text.js registered as a worker registers it. On stdin: JSON {code,
// input, mount}; `code` finds `input` (JSON text) as a variable, the folder `mount` at /files, and ends in an expression
// of JSON text, which goes to stdout.
// @ts-nocheck: Node's own types are not installed

import { loadPyodide } from '../../fanlight/web/vendor/pyodide/pyodide.mjs';
import * as text from '../../fanlight/web/text.js';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const { code, input, mount } = JSON.parse(readFileSync(0, 'utf8'));
const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const python = await loadPyodide({ indexURL: here('../../fanlight/web/vendor/pyodide/') });
for (const [path, root] of [['/repository', here('../..')], ['/files', mount]]) {
  python.FS.mkdirTree(path);
  python.FS.mount(python.FS.filesystems.NODEFS, { root }, path);
}
python.registerJsModule('fanlight_js', text);
python.runPython("import sys; sys.dont_write_bytecode = True; sys.path.insert(0, '/repository')");
python.globals.set('input', input);
try {
  process.stdout.write(python.runPython(code));
} catch (error) {
  console.error(error.message); // the stack would quote megabytes of source
  process.exitCode = 1;
}
