// onnxruntime-web under page.js, one case a message: {model, feeds, wanted} → {outputs} or {error}.
// The provider (wasm, webgpu) is in this file's address; each has the bundle that its makers name for it.

const provider = location.search.slice(1);
const folder = '/node_modules/onnxruntime-web/dist/';
/** @type {any} */
let ort;

async function start() {
  ort = await import(`${folder}ort.${provider}.min.mjs`);
  ort.env.wasm.wasmPaths = folder;
  ort.env.logLevel = 'fatal';
}

/** @type {Record<string, any>} */
const CLASSES = {
  float32: Float32Array,
  float64: Float64Array,
  float16: /** @type {any} */ (globalThis).Float16Array,
  int64: BigInt64Array,
  uint64: BigUint64Array,
  int32: Int32Array,
  uint32: Uint32Array,
  int16: Int16Array,
  uint16: Uint16Array,
  int8: Int8Array,
};

/** @param {import('./page.js').Packed} packed */
function tensor({ type, dims, data }) {
  const raw = /** @type {any} */ (Uint8Array).fromBase64(data);
  return new ort.Tensor(type, new (CLASSES[type] ?? Uint8Array)(raw.buffer), dims);
}

/** @param {any} tensor @returns {import('./page.js').Packed} */
function packed({ type, dims, data }) {
  const raw = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  return { type, dims: [...dims], data: /** @type {any} */ (raw).toBase64() };
}

/** @param {{model: string, feeds: Record<string, import('./page.js').Packed>, wanted: string[]}} fields */
async function run({ model, feeds, wanted }) {
  let stage = 'create';
  let session;
  try {
    await starting;
    const bytes = /** @type {any} */ (Uint8Array).fromBase64(model);
    session = await ort.InferenceSession.create(bytes, { executionProviders: [provider] });
    stage = 'tensor';
    const tensors = Object.fromEntries(
      Object.entries(feeds).map(([name, value]) => [name, tensor(value)]));
    stage = 'run';
    const results = await session.run(tensors, wanted);
    return { outputs: wanted.map((name) => packed(results[name])) };
  } catch (error) {
    const { name, message } = /** @type {any} */ (error);
    return { error: { stage, code: name ?? '', message: message ?? String(error) } };
  } finally {
    await session?.release();
  }
}

const starting = start();
onmessage = async ({ data }) => postMessage(await run(data));
