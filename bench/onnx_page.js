// The page of bench/onnx.py. `engines.NAME(threads)` of Fanlight and onnxruntime-web has
//   create(model, asBytes)  a session of a file's bytes or address; ms
//   burst(ms)               runs for so long, once at least; the ms of each
//   outputs()               of the last run: [{dims, data}], f32 as base64
// With ?engine=…&model=…&threads=… it rests, then creates a session of the
// model's address and runs it: titles tell when.
// Both get typed arrays and give typed arrays. onnxruntime-web runs in the page itself, as it does by default.

const ORT = '/node_modules/onnxruntime-web/dist/';
const REST_MS = 6000;
const WORK_MS = 1500;

const bytesOf = async (address) => new Uint8Array(await (await fetch(address)).arrayBuffer());

/** Inputs of a model: {name: {type, dims, data}}, as typed arrays. */
async function feedsOf(model) {
  const packed = await (await fetch(`/feeds/${model}`)).json();
  const classes = { float32: Float32Array, int64: BigInt64Array };
  return Object.fromEntries(Object.entries(packed).map(([name, { type, dims, data }]) => {
    const raw = Uint8Array.fromBase64(data);
    return [name, { type, dims, data: new classes[type](raw.buffer) }];
  }));
}

/** `start` → (model, feeds) → run, which resolves with {name: {dims, data}}. */
function engine(start) {
  let run;
  let last;
  return {
    async create(model, asBytes = true) {
      const address = `/models/${model}`;
      const [source, feeds] = await Promise.all([asBytes ? bytesOf(address) : address, feedsOf(model)]);
      const begin = performance.now();
      run = await (await start())(source, feeds);
      return performance.now() - begin;
    },
    async burst(ms) {
      const times = [];
      const end = performance.now() + ms;
      do {
        const begin = performance.now();
        last = await run();
        times.push(performance.now() - begin);
      } while (performance.now() < end);
      return times;
    },
    outputs: () => Object.values(last).map(({ dims, data }) => (
      { dims, data: new Uint8Array(data.buffer, data.byteOffset, data.byteLength).toBase64() })),
  };
}

/** Its threads are all that a page may have: two where it is isolated, else one. */
const fanlight = () => engine(async () => {
  const { InferenceSession } = await import('/fanlight.js');
  return async (source, feeds) => {
    const session = await InferenceSession.create(source, { executionProviders: ['wasm'] });
    return () => session.run(feeds);
  };
});

const ort = (threads) => engine(async () => {
  const library = await import(`${ORT}ort.wasm.min.mjs`);
  library.env.wasm.wasmPaths = ORT;
  library.env.wasm.numThreads = threads;
  library.env.logLevel = 'error';
  return async (source, feeds) => {
    const session = await library.InferenceSession.create(source, { executionProviders: ['wasm'] });
    const tensors = Object.fromEntries(Object.entries(feeds).map(
      ([name, { type, dims, data }]) => [name, new library.Tensor(type, data, dims)]));
    return () => session.run(tensors);
  };
});

globalThis.engines = { fanlight, ort };

const { engine: name, model, threads } = Object.fromEntries(new URLSearchParams(location.search));
if (name) {
  document.title = 'Resting';
  await new Promise((resolve) => setTimeout(resolve, REST_MS));
  try {
    const made = engines[name](Number(threads));
    await made.create(model, false);
    await made.burst(WORK_MS);
    document.title = 'Ready';
  } catch (error) {
    document.title = `Error ${error.message}`;
  }
}
