// GPU time of each kernel of an ONNX model's run: its dispatches one behind the other in a pass
// between two timestamps, at the sizes of the given inputs.

import { load } from './gpu.js';
import { timed } from './gpu_chat_profile.js';
import { FetchedFile } from './gpu_chat_weights.js';
import { readPlan } from './plan.js';
import { evaluate } from './sizes.js';

const PASSES = 5;
const MOST = 512; // dispatches of a kernel in a pass; more are a multiple of these

/** Dispatches of some steps and how often each runs. */
function* dispatches(plan, steps, dims, times = 1) {
  for (const step of steps) {
    if (step.op === 'dispatch') yield [step, times];
    else if (step.op === 'loop')
      yield* dispatches(plan, step.body, dims, times * evaluate(step.count, dims, plan.maxima));
    else if (step.op === 'call') yield* dispatches(plan, plan.programs.get(step.program), dims, times);
    else if (step.op === 'branch') yield* dispatches(plan, step.then, dims, times);
  }
}

/** Sizes of free dims that inputs show. */
function dimsOf(inputs, feeds) {
  const dims = new Map();
  for (const { name, sizes } of inputs)
    sizes.forEach((size, axis) => {
      if (typeof size === 'string') dims.set(size, feeds[name].dims[axis]);
    });
  return dims;
}

/**
 * Runs the plan and times it. `described`: the session's inputs and stages.
 * @returns {Promise<{dispatches: number, profile: {kernel: string, of: string, dispatches: number, ms: number}[] | null}>}
 */
export async function profileOf(bytes, described, file, feeds) {
  const plan = readPlan(bytes);
  const files = new Map(plan.weights.map((weight) => [weight.source.file, new FetchedFile(file)]));
  const session = await load(bytes, files);
  try {
    const { device } = session.device;
    const { replay } = session;
    const dims = dimsOf(described.inputs, feeds);
    let given = Object.fromEntries(described.inputs.filter(({ buffer }) => buffer !== null).map(
      ({ name, buffer }) => [buffer, new Uint8Array(feeds[name].data.buffer)]));
    const rows = new Map();
    let count = 0;
    for (const { program, reads } of described.stages) {
      const known = Object.fromEntries([...dims].filter(([name]) => session.plan.maxima.has(name)));
      await session.run(program, given, known);
      given = {};
      for (const [name, buffer] of Object.entries(reads)) {
        const size = await session.read(buffer, 0, 4);
        dims.set(name, new DataView(size.buffer, size.byteOffset).getInt32(0, true));
      }
      for (const [step, times] of dispatches(session.plan, session.plan.programs.get(program), dims)) {
        const grid = step.grid.map((g) => evaluate(g, dims, session.plan.maxima));
        if (Math.min(...grid) <= 0) continue;
        count += times;
        const { name } = session.plan.kernels[step.kernel];
        if (!rows.has(name)) rows.set(name, []);
        rows.get(name).push({ step, times, grid });
      }
    }
    if (!device.features.has('timestamp-query')) return { dispatches: count, profile: null };
    const out = [];
    for (const [name, all] of rows) {
      const total = all.reduce((sum, { times }) => sum + times, 0);
      const share = Math.min(1, MOST / total);
      const encode = (pass) => {
        pass.setPipeline(replay.pipelines[all[0].step.kernel]);
        for (const { step, times, grid } of all) {
          pass.setBindGroup(0, replay.prepared.get(step).bindGroup);
          for (let i = Math.ceil(times * share); i > 0; i--) pass.dispatchWorkgroups(...grid);
        }
      };
      const done = all.reduce((sum, { times }) => sum + Math.ceil(times * share), 0);
      let ms = Infinity;
      for (let i = 0; i < PASSES && (i === 0 || ms * i < 1000); i++) ms = Math.min(ms, await timed(device, encode));
      out.push({ kernel: name, of: `${all[0].grid}`, dispatches: total, ms: (ms * total) / done });
    }
    return { dispatches: count, profile: out.sort((a, b) => b.ms - a.ms) };
  } finally {
    await session.dispose();
  }
}
