// Inside the browser that scripts/snapshot.py starts: makes Fanlight's bytecode by Pyodide's own Python, then the
// memory of a Python that has imported it, one with JSPI and one without. Each result is posted to /out/NAME. The
// same file is the page's module (it starts the workers one after the other) and their module.

import { loadPyodide } from '/vendor/pyodide/pyodide.mjs';
import { PACKAGE } from '/python_boot.js';
import { pack } from '/snapshot.js';

const indexURL = new URL('/vendor/pyodide/', location.href).href;
const STEPS = ['bytecode', 'jspi', 'plain'];

// One zip to another: each source as bytecode that is never checked against its source, all else as it is.
const COMPILE = `
import importlib._bootstrap_external as importing, importlib.util, io, zipfile

def compiled(source, package):
    out = io.BytesIO()
    with zipfile.ZipFile(source) as given, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        for info in given.infolist():
            data, name = given.read(info), info.filename
            if name.endswith(".py"):
                code = compile(data, f"{package}/{name}", "exec", dont_inherit=True)
                data = importing._code_to_hash_pyc(code, importlib.util.source_hash(data), False)
                name += "c"
            target = zipfile.ZipInfo(name, info.date_time)
            target.external_attr, target.compress_type = info.external_attr, zipfile.ZIP_DEFLATED
            made.writestr(target, data)
    return out.getvalue()
`;

// Every module of the zip, and nothing that a start leaves behind.
const IMPORT = `
import gc, importlib, sys, zipfile

sys.path.insert(0, package)
for name in zipfile.ZipFile(package).namelist():
    if name.endswith(".pyc"):
        importlib.import_module(name.removesuffix(".pyc").replace("/", ".").removesuffix(".__init__"))
del name
gc.collect()
`;

/** @param {string} url */
async function bytes(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: ${response.status}`);
  return new Uint8Array(await response.arrayBuffer());
}

/** @param {string} name @param {BodyInit} body */
async function post(name, body) {
  await fetch(`/out/${name}`, { method: 'POST', body });
}

async function makeBytecode() {
  const python = await loadPyodide({ indexURL });
  python.FS.writeFile('/source.zip', await bytes('/vendor/fanlight.zip'));
  python.runPython(COMPILE);
  const made = python.runPython(`compiled("/source.zip", "${PACKAGE}")`);
  await post('fanlight.zip', made.toJs());
}

/** @param {string} variant */
async function makeSnapshot(variant) {
  const python = await loadPyodide({ indexURL, _makeSnapshot: true });
  python.FS.writeFile(PACKAGE, await bytes('/out/fanlight.zip'));
  python.runPython(`package = "${PACKAGE}"\n${IMPORT}`);
  const memory = /** @type {any} */ (python).makeMemorySnapshot();
  const zipped = new Blob([pack(memory)]).stream().pipeThrough(new CompressionStream('gzip'));
  await post(`${variant}.gz`, await new Response(zipped).arrayBuffer());
}

if (typeof document === 'undefined') {
  const step = self.name;
  if (step === 'plain') {
    const jspi = /** @type {any} */ (WebAssembly);
    delete jspi.Suspending;
    delete jspi.promising;
  }
  const done = step === 'bytecode' ? makeBytecode() : makeSnapshot(step);
  done.then(
    () => self.postMessage(null),
    (error) => self.postMessage(String(error?.stack ?? error)),
  );
} else {
  for (const step of STEPS) {
    const worker = new Worker(import.meta.url, { type: 'module', name: step });
    const failure = await new Promise((resolve) => {
      worker.onmessage = ({ data }) => resolve(data);
      worker.onerror = ({ message }) => resolve(message || 'the worker could not be loaded');
    });
    worker.terminate();
    if (failure !== null) {
      await post('failed', `${step}: ${failure}`);
      break;
    }
  }
  await post('done', '');
}
