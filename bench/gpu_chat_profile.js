// Where the time of a decode step goes: each kernel's dispatches of a step, all layers', in one
// pass between two timestamps; and the rate at which the device reads a large buffer.

import { stepsOf } from './web/plan.js';
import { evaluate } from './web/sizes.js';

const PASSES = 8;

/** GPU ms of the passes that `encode` fills. @param {GPUDevice} device @param {(pass: GPUComputePassEncoder) => void} encode */
export async function timed(device, encode) {
  const set = device.createQuerySet({ type: 'timestamp', count: 2 });
  const usage = GPUBufferUsage;
  const raw = device.createBuffer({ size: 16, usage: usage.QUERY_RESOLVE | usage.COPY_SRC });
  const back = device.createBuffer({ size: 16, usage: usage.MAP_READ | usage.COPY_DST });
  const encoder = device.createCommandEncoder();
  const pass = encoder.beginComputePass({
    timestampWrites: { querySet: set, beginningOfPassWriteIndex: 0, endOfPassWriteIndex: 1 },
  });
  encode(pass);
  pass.end();
  encoder.resolveQuerySet(set, 0, 2, raw, 0);
  encoder.copyBufferToBuffer(raw, 0, back, 0, 16);
  device.queue.submit([encoder.finish()]);
  await back.mapAsync(GPUMapMode.READ);
  const [begin, end] = new BigUint64Array(back.getMappedRange());
  for (const thing of [set, raw, back]) thing.destroy();
  return Number(end - begin) / 1e6;
}

/**
 * Kernel → dispatches in a step, µs each (best of some passes), bytes of weights read, GB/s.
 * Null where the device has no timestamps.
 */
export async function profile(session, plan, programs) {
  const { device } = session.device;
  if (!device.features.has('timestamp-query')) return null;
  const { replay } = session;
  const ready = [...stepsOf(programs.flatMap((p) => session.plan.programs.get(p)))];
  const rows = new Map();
  for (const step of ready) {
    if (step.op !== 'dispatch') continue;
    const name = session.plan.kernels[step.kernel].name;
    rows.set(name, [...(rows.get(name) ?? []), step]);
  }
  const out = [];
  const weights = new Set([...plan.buffers.values()].filter((b) => b.kind === 'weight').map((b) => b.name));
  for (const [name, steps] of rows) {
    const encode = (pass) => {
      pass.setPipeline(replay.pipelines[steps[0].kernel]);
      for (const step of steps) {
        const grid = step.grid.map((g) => evaluate(g, new Map(), session.plan.maxima));
        pass.setBindGroup(0, replay.prepared.get(step).bindGroup);
        pass.dispatchWorkgroups(...grid);
      }
    };
    const times = [];
    for (let i = 0; i < PASSES; i++) times.push(await timed(device, encode));
    const ms = Math.min(...times);
    const read = steps.flatMap((s) => s.buffers).filter((b) => weights.has(b));
    const size = (buffer) => replay.bytes.get(buffer) ?? 0;
    const bytes = name.startsWith('gather') ? 0 : read.reduce((sum, b) => sum + size(b), 0);
    out.push({
      kernel: name.replace(/_[0-9a-f]{12}$/, ''),
      of: read.reduce((a, b) => (size(b) > size(a) ? b : a), ''),
      dispatches: steps.length,
      us: (ms * 1000) / steps.length,
      total_us: ms * 1000,
      GBps: bytes / ms / 1e6,
    });
  }
  return out.sort((a, b) => b.total_us - a.total_us);
}

/** GB/s at which a plain kernel reads a buffer once. */
export async function readRate(session, tiny) {
  const { device } = session.device;
  const bytes = tiny ? 16 << 20 : Math.min(512 << 20, device.limits.maxStorageBufferBindingSize);
  const usage = GPUBufferUsage.STORAGE;
  const data = device.createBuffer({ size: bytes, usage });
  const sums = device.createBuffer({ size: 1 << 16, usage });
  const module = device.createShaderModule({
    code: `@group(0) @binding(0) var<storage, read> data: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> sums: array<u32>;
@compute @workgroup_size(256) fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>) {
  var sum = vec4<u32>(0u);
  for (var i = id.x; i < ${bytes / 16}u; i += n.x * 256u) { sum += data[i]; }
  if (sum.x + sum.y + sum.z + sum.w == 1u) { sums[id.x & 1023u] = sum.x; }
}`,
  });
  const pipeline = device.createComputePipeline({ layout: 'auto', compute: { module, entryPoint: 'main' } });
  const entries = [data, sums].map((buffer, binding) => ({ binding, resource: { buffer } }));
  const group = device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries });
  const times = [];
  const rounds = tiny ? 1 : 8;
  for (let i = 0; i < 4; i++) {
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    pass.setPipeline(pipeline);
    pass.setBindGroup(0, group);
    for (let j = 0; j < rounds; j++) pass.dispatchWorkgroups(4096);
    pass.end();
    const began = performance.now();
    device.queue.submit([encoder.finish()]);
    await device.queue.onSubmittedWorkDone();
    times.push((performance.now() - began) / rounds);
  }
  data.destroy();
  sums.destroy();
  return bytes / Math.min(...times) / 1e6;
}
