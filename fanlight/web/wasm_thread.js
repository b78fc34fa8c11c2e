// One thread of a wasm plan: instantiates the module with the shared memory, then stays inside it.

/** @type {WebAssembly.Instance} */
let instance;
let tid = 0;
let threads = 1;

self.onmessage = async ({ data }) => {
  if (data === 'enter') {
    /** @type {(tid: number, threads: number) => void} */ (instance.exports.worker)(tid, threads);
    return;
  }
  ({ tid, threads } = data);
  try {
    const module = /** @type {WebAssembly.Module} */ (data.module);
    instance = await WebAssembly.instantiate(module, { env: { memory: data.memory, mark() {} } });
    self.postMessage('ready');
  } catch (error) {
    reportError(error);
  }
};
