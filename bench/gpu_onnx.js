// The page of gpu_onnx.py: each model with our InferenceSession and onnxruntime-web's, both on
// WebGPU, in turns; where our time goes. Posts lines to /log and the result to /done.

import { InferenceSession } from './fanlight.js';
import * as ort from './ort/ort.webgpu.min.mjs';
import { profileOf } from './gpu_onnx_profile.js';

const BURST_MS = 300;
const query = new URLSearchParams(location.search);
const post = (path, body) => fetch(path, { method: 'POST', body });
const say = (text) => post('/log', text);
const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];
const classes = { float32: Float32Array, int64: BigInt64Array };

const dispatches = { count: 0 };
const original = GPUComputePassEncoder.prototype.dispatchWorkgroups;
GPUComputePassEncoder.prototype.dispatchWorkgroups = function (...grid) {
  dispatches.count += 1;
  return original.apply(this, grid);
};
// timestamps are for the profile alone
const request = GPUAdapter.prototype.requestDevice;
GPUAdapter.prototype.requestDevice = function (options) {
  const more = this.features.has('timestamp-query') ? ['timestamp-query'] : [];
  return request.call(this, { ...options, requiredFeatures: [...(options?.requiredFeatures ?? []), ...more] });
};

/** Random numbers of a type, the same for both engines. */
function fill(bytes, type, spread) {
  let state = 12345;
  const next = () => ((state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 4294967296);
  const normal = () => (next() + next() + next() + next() - 2) * Math.sqrt(3) * spread;
  const { buffer } = bytes;
  if (type === 'float32') new Float32Array(buffer).forEach((_, i, all) => { all[i] = normal(); });
  else if (type === 'float16') new Float16Array(buffer).forEach((_, i, all) => { all[i] = normal(); });
  else if (type === 'uint8') bytes.forEach((_, i) => { bytes[i] = 128 + normal(); });
  else if (type === 'int8') bytes.forEach((_, i) => { bytes[i] = normal(); });
  else throw new Error(`weights of type ${type}`);
}

/** The file and its inputs. */
async function modelOf(name) {
  const [stored, recipe] = await Promise.all([
    fetch(`models/${name}.onnx`).then((r) => r.arrayBuffer()).then((b) => new Uint8Array(b)),
    fetch(`models/${name}.json`).then((r) => r.json()),
  ]);
  const file = new Uint8Array(recipe.bytes);
  let from = 0;
  let to = 0;
  for (const [offset, length, type, spread] of recipe.weights) {
    file.set(stored.subarray(from, from + offset - to), to);
    from += offset - to;
    const weights = new Uint8Array(length);
    fill(weights, type, spread);
    file.set(weights, offset);
    to = offset + length;
  }
  file.set(stored.subarray(from), to);
  const feeds = Object.fromEntries(Object.entries(recipe.feeds).map(([key, { type, dims, data }]) => (
    [key, { type, dims, data: new classes[type](Uint8Array.fromBase64(data).buffer) }])));
  return { file, feeds };
}

const engines = {
  async fanlight({ file, feeds }) {
    const session = await InferenceSession.create(file, { executionProviders: ['webgpu'] });
    const output = session.outputs[0].name;
    return { run: async () => (await session.run(feeds, [output]))[output], dispose: () => session.dispose() };
  },
  async ort({ file, feeds }) {
    ort.env.wasm.wasmPaths = new URL('ort/', location.href).href;
    ort.env.wasm.numThreads = Math.min(4, navigator.hardwareConcurrency);
    ort.env.logLevel = 'error';
    const session = await ort.InferenceSession.create(file, { executionProviders: ['webgpu'] });
    const tensors = Object.fromEntries(Object.entries(feeds).map(
      ([name, { type, dims, data }]) => [name, new ort.Tensor(type, data, dims)]));
    const output = session.outputNames[0];
    return { run: async () => (await session.run(tensors, [output]))[output], dispose: () => session.release() };
  },
};

async function burst(run, ms) {
  const times = [];
  const end = performance.now() + ms;
  do {
    const begin = performance.now();
    await run();
    times.push(performance.now() - begin);
  } while (performance.now() < end);
  return median(times);
}

/** GPU time of each kernel. */
async function profiled(name, { file, feeds }) {
  const [bytes, described] = await Promise.all([
    fetch(`plans/${name}`).then((r) => r.arrayBuffer()),
    fetch(`plans/${name}.json`).then((r) => r.json()),
  ]);
  return profileOf(new Uint8Array(bytes), described, file, feeds);
}

/** `promise`, or an error if it takes longer than a minute. */
function within(promise) {
  const late = new Promise((_, reject) => { setTimeout(() => reject(new Error('no answer in a minute')), 60000); });
  return Promise.race([promise, late]);
}

async function measure(name, pairs) {
  const model = await modelOf(name);
  const out = { fanlight: { runs: [] }, ort: { runs: [] } };
  const made = {};
  const outputs = {};
  for (const [engine, create] of Object.entries(engines)) {
    try {
      let begin = performance.now();
      made[engine] = await within(create(model));
      out[engine].create_ms = performance.now() - begin;
      begin = performance.now();
      outputs[engine] = await within(made[engine].run());
      out[engine].first_ms = performance.now() - begin;
      await burst(made[engine].run, 2 * BURST_MS);
      dispatches.count = 0;
      await made[engine].run();
      out[engine].dispatches = dispatches.count;
    } catch (error) {
      out[engine].error = `${error.name}: ${error.message}`.slice(0, 400);
      delete made[engine];
    }
  }
  for (let i = 0; i < pairs; i++)
    for (const engine of Object.keys(made)) out[engine].runs.push(await burst(made[engine].run, BURST_MS));
  for (const row of [out.fanlight, out.ort]) if (row.runs.length) row.run_ms = median(row.runs);
  if (outputs.fanlight && outputs.ort) {
    const [a, b] = [outputs.fanlight.data, outputs.ort.data];
    const length = Math.min(a.length, b.length);
    let [difference, greatest] = [0, 0];
    for (let i = 0; i < length; i++) {
      difference = Math.max(difference, Math.abs(Number(a[i]) - Number(b[i])));
      greatest = Math.max(greatest, Math.abs(Number(b[i])));
    }
    Object.assign(out, { difference, greatest, elements: [a.length, b.length] });
  }
  for (const session of Object.values(made)) await session.dispose();
  try {
    const found = await within(profiled(name, model));
    out.fanlight.dispatches = found.dispatches;
    out.profile = found.profile;
  } catch (error) {
    out.profile_error = `${error.name}: ${error.message}`.slice(0, 400);
  }
  return out;
}

const adapter = await navigator.gpu?.requestAdapter();
const found = { adapter: adapter?.info.description || adapter?.info.vendor, f16: adapter?.features.has('shader-f16'), models: {} };
for (const name of query.get('models').split(',')) {
  const begin = performance.now();
  try {
    found.models[name] = await measure(name, Number(query.get('pairs')));
  } catch (error) {
    found.models[name] = { fanlight: { error: String(error) }, ort: { error: '' } };
  }
  const { fanlight, ort: theirs } = found.models[name];
  await say(`${name}: ${fanlight.run_ms ?? fanlight.error} ${theirs.run_ms ?? theirs.error} (${((performance.now() - begin) / 1000).toFixed(1)} s) ${found.models[name].profile_error ?? ''}`);
}
await post('/done', JSON.stringify(found));
