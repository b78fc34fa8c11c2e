// The page of gpu_chat.py: for each model and variant, is it right, how fast does it decode and
// prefill, what does it ask of the GPU, where does a step's time go. Posts lines to /log and the
// result to /done.

import { load } from './web/gpu.js';
import { readPlan } from './web/plan.js';
import { profile, readRate } from './gpu_chat_profile.js';
import { FetchedFile, MadeFile } from './gpu_chat_weights.js';

const CONTROL = 8;
const query = new URLSearchParams(location.search);
const post = (path, body) => fetch(path, { method: 'POST', body });
const say = (text) => post('/log', text);
const bytesOf = async (name) => new Uint8Array(await (await fetch(name)).arrayBuffer());
const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];
const words = (values) => new Uint8Array(Int32Array.from(values).buffer);
const control = (position, token) => words([position, token, ...Array(CONTROL - 2).fill(0)]);
const stops = words(Array(8).fill(-1));

/** What the executor asks of WebGPU, counted while `on`. */
const counts = { on: false, submits: 0, passes: 0, dispatches: 0, written: 0, read: 0, made: 0 };

function countCalls() {
  const wrap = (kind, method, note) => {
    const original = kind.prototype[method];
    kind.prototype[method] = function (...args) {
      if (counts.on) note(...args);
      return original.apply(this, args);
    };
  };
  wrap(GPUQueue, 'submit', () => (counts.submits += 1));
  wrap(GPUQueue, 'writeBuffer', () => (counts.written += 1));
  wrap(GPUCommandEncoder, 'beginComputePass', () => (counts.passes += 1));
  wrap(GPUComputePassEncoder, 'dispatchWorkgroups', () => (counts.dispatches += 1));
  wrap(GPUBuffer, 'mapAsync', (mode, offset, size) => (counts.read += size));
  for (const method of ['createBuffer', 'createBindGroup', 'createComputePipelineAsync'])
    wrap(GPUDevice, method, () => (counts.made += 1));
  // timestamps are for the profile alone; the executor asks for no more than its plan
  const request = GPUAdapter.prototype.requestDevice;
  GPUAdapter.prototype.requestDevice = function (options) {
    const more = this.features.has('timestamp-query') ? ['timestamp-query'] : [];
    const requiredFeatures = [...(options?.requiredFeatures ?? []), ...more];
    return request.call(this, { ...options, requiredFeatures });
  };
}

/** NMSE of the logits of decode steps over known tokens. */
async function check(row, variant) {
  const { plan, bound } = row.variants[variant];
  const file = new FetchedFile(await bytesOf(row.weights));
  const wanted = new Float32Array((await bytesOf(row.logits)).buffer);
  const session = await load(await bytesOf(plan), new Map([['model', file]]));
  try {
    let error = 0;
    let power = 0;
    for (const [position, token] of row.tokens.entries()) {
      await session.run('begin', { control: control(position, token), stops });
      await session.run('step');
      const got = new Float32Array((await session.read('logits')).buffer);
      for (let i = 0; i < row.vocab; i++) {
        const value = wanted[position * row.vocab + i];
        error += (got[i] - value) ** 2;
        power += value ** 2;
      }
    }
    return { nmse: error / power, bound, right: error / power <= bound };
  } finally {
    await session.dispose();
  }
}

/** Decode from a position on. `counted`: notes in `counts` what it asks for. */
async function decode(session, position, steps, runs, counted = false) {
  await session.run('begin', { control: control(position, 1), stops });
  await session.read('control', 0, 4);
  const first = [];
  counts.on = counted;
  const began = performance.now();
  await session.repeat('decode', runs, 'chosen', { steps }, (bytes) => {
    if (!first.length) first.push(...new Int32Array(bytes.buffer));
  });
  const ms = (performance.now() - began) / (runs * steps);
  counts.on = false;
  return { ms, first };
}

async function measure(model, variant, repeats) {
  const row = model.variants[variant];
  const planBytes = await bytesOf(row.plan);
  const began = performance.now();
  const file = new MadeFile(model.bytes, model.tensors);
  const session = await load(planBytes, new Map([['model', file]]));
  const { steps, context, chunk } = model;
  try {
    const out = { load_ms: performance.now() - began, adapter: session.info.adapter, ...row };
    out.resident_mb = session.info.resident_bytes / 1e6;
    const tokens = words(Array.from({ length: chunk }, (_, i) => (i * 7919) % model.vocab));
    const prefills = [];
    for (let i = 0; i <= repeats; i++) {
      const start = performance.now();
      await session.run('prefill', { tokens, control: control(0, 0) }, { T: chunk });
      await session.read('control', 0, 4);
      if (i) prefills.push(performance.now() - start);
    }
    out.prefill_tokens = chunk;
    out.prefill_tok_s = (chunk * 1000) / median(prefills);
    const runs = Math.max(1, Math.min(16, Math.floor((context - 2000) / steps) - 1));
    const far = Math.max(0, Math.min(2000, context - (runs + 1) * steps));
    for (const [name, position] of Object.entries({ near: 16, far })) {
      await decode(session, position, steps, 1);
      const times = [];
      for (let i = 0; i < repeats; i++) {
        const { ms, first } = await decode(session, position, steps, runs);
        times.push(ms);
        out[`${name}_tokens`] = first.slice(0, 8);
      }
      out[`${name}_position`] = position;
      out[`${name}_tok_s`] = 1000 / median(times);
      out[`${name}_best_tok_s`] = 1000 / Math.min(...times);
    }
    for (const key of Object.keys(counts)) counts[key] = 0;
    await decode(session, 16, steps, runs, true);
    const made = runs * steps;
    out.per_token = {
      dispatches: counts.dispatches / made,
      passes: counts.passes / made,
      submits: counts.submits / made,
      bytes_read: counts.read / made,
      writes: counts.written / made,
      objects_made: counts.made / made,
    };
    out.submit_ms = (steps * 1000) / out.near_tok_s;
    const rate = await readRate(session, query.get('tiny') !== null);
    out.read_GBps = rate;
    const kv = row.kv === 'f16' ? 2 : 4;
    const perPosition = 2 * model.layers * model.kv_heads * (model.hidden / model.heads) * kv;
    for (const name of ['near', 'far']) {
      const bytes = model.bytes + perPosition * out[`${name}_position`];
      out[`${name}_floor_share`] = (bytes / rate / 1e9) * out[`${name}_tok_s`];
    }
    out.profile = await profile(session, readPlan(planBytes), ['step', 'sample']);
    return out;
  } finally {
    await session.dispose();
  }
}

async function main() {
  countCalls();
  const index = await (await fetch('models.json')).json();
  const chosen = (key, all) => query.get(key)?.split(';') ?? all;
  const variants = chosen('variants', index.variants);
  const repeats = Number(query.get('repeats') ?? 5);
  const out = { check: {}, models: {} };
  for (const variant of variants) {
    out.check[variant] = await check(index.check, variant).catch((e) => ({ error: String(e) }));
    await say(`check, ${variant}: ${JSON.stringify(out.check[variant])}`);
  }
  for (const name of chosen('models', Object.keys(index.models))) {
    out.models[name] = {};
    for (const variant of variants) {
      const row = await measure(index.models[name], variant, repeats).catch((e) => ({
        error: String(e.stack ?? e),
      }));
      out.models[name][variant] = row;
      await say(`${name}, ${variant}: ${row.error ?? `${row.near_tok_s.toFixed(1)} tokens/s`}`);
    }
  }
  return out;
}

main().then(
  (out) => post('/done', JSON.stringify(out)),
  (error) => post('/done', JSON.stringify({ error: String(error.stack ?? error) })),
);
