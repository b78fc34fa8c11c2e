// The page of tests/conformance/browser.py: `engines.NAME(provider)` has
//   probe()       what the executor offers to the compiler; null where nothing is compiled ahead
//   run(fields)   one case: {outputs: [{type, dims, data}]}, or {error: {stage, code, message}}
// Bytes cross as base64; elements of less than a byte are packed. `stage` is create, tensor or run.

import { InferenceSession } from '../../fanlight/web/inference.js';
import { Channel } from '../../fanlight/web/protocol.js';
import { tensorOf } from '../../fanlight/web/tensor.js';

/** @typedef {{type: string, dims: number[], data: string}} Packed */

/** The executor's worker under the page's own InferenceSession; the plan was compiled elsewhere.
 * @param {'wasm' | 'webgpu'} device */
function fanlight(device) {
  const executor = new Channel(new Worker('/fanlight/web/executor_worker.js', { type: 'module' }));
  const python = /** @type {any} */ ({ request: executor.request.bind(executor) });

  /** @param {{model: string, plan: string, described: any, feeds: Record<string, Packed>}} fields */
  async function run({ model, plan, described, feeds }) {
    let stage = 'create';
    let session;
    try {
      const { file } = await executor.request('open', { source: new Blob([bytes(model)]) });
      const { buffer } = bytes(plan);
      const loaded = await executor.request('load', { plan: buffer, files: file }, { transfer: [buffer] });
      const handle = loaded.session;
      session = new InferenceSession({ ...loaded, ...described, handle }, { executor, python });
      await executor.request('dispose', { file });
      stage = 'run';
      const tensors = Object.fromEntries(Object.entries(feeds).map(
        ([name, { type, dims, data }]) => [name, tensorOf(bytes(data), type, dims)]));
      const results = await session.run(tensors);
      return { outputs: session.outputs.map(({ name }) => packed(results[name])) };
    } catch (error) {
      const { code, name, message } = /** @type {any} */ (error);
      return { error: { stage, code: code ?? name, message } };
    } finally {
      await session?.dispose();
    }
  }
  return { probe: () => executor.request('probe', { device }), run };
}

/** onnxruntime-web in a worker of its own. @param {'wasm' | 'webgpu'} provider */
function ort(provider) {
  const worker = new Worker(`/tests/conformance/ort_worker.js?${provider}`, { type: 'module' });
  /** @param {object} fields */
  function run(fields) {
    return new Promise((resolve, reject) => {
      worker.onmessage = ({ data }) => resolve(data);
      worker.onerror = ({ message }) => reject(new Error(`the worker failed: ${message}`));
      worker.postMessage(fields);
    });
  }
  return { probe: async () => null, run };
}

/** @param {string} text @returns {Uint8Array<ArrayBuffer>} */
function bytes(text) {
  return /** @type {any} */ (Uint8Array).fromBase64(text);
}

/** @param {import('../../fanlight/web/tensor.js').Tensor} tensor @returns {Packed} */
function packed({ type, dims, data }) {
  const raw = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  return { type, dims: [...dims], data: /** @type {any} */ (raw).toBase64() };
}

Object.assign(globalThis, { engines: { fanlight, ort } });
