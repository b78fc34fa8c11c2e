// Times of a run's kernels, added up; and a GPU's timestamps, which tell them there. The Python twin
// is fanlight/runtime/timing.py.

import { InputError } from './errors.js';

/** @typedef {import('./plan.js').Plan} Plan */
/**
 * @typedef {{kernel: string, dispatches: number, ms: number}} KernelTime what a kernel cost in a run: how often it
 *   ran, and all of that together; copies of buffers are a kernel named `copy`
 */

/** Dispatches with times in one query set: WebGPU allows 4,096 timestamps. */
const MOST = 2048;

/** Throws InputError where the plan's kernels can not be timed. @param {Plan} plan */
export function checkTimed({ features, wasm }) {
  if (features.includes('timestamp-query') || wasm?.timed) return;
  const hint = 'Create it with {profile: true}.';
  throw new InputError('the session was not made for profiling', { hint });
}

/** Adds up by kernel; the most costly first. @param {Iterable<KernelTime>} rows @param {number} [runs]
 * @returns {KernelTime[]} a run's share */
export function added(rows, runs = 1) {
  /** @type {Map<string, KernelTime>} */
  const sums = new Map();
  for (const { kernel, dispatches, ms } of rows) {
    const row = sums.get(kernel) ?? { kernel, dispatches: 0, ms: 0 };
    sums.set(kernel, row);
    row.dispatches += dispatches;
    row.ms += ms;
  }
  const shares = [...sums.values()].map((row) => ({
    ...row, dispatches: Math.round(row.dispatches / runs), ms: row.ms / runs,
  }));
  return shares.sort((a, b) => b.ms - a.ms);
}

/** Begins with its making; each `mark` takes the time since the last one. */
export class Stopwatch {
  /** @type {KernelTime[]} */
  #rows = [];
  #last = performance.now();

  /** @param {Plan} plan */
  constructor(plan) {
    checkTimed(plan);
    this.plan = plan;
  }

  /** @param {number} kernel what has just ended, by its number; -1: a copy */
  mark(kernel) {
    const ms = performance.now() - this.#last;
    this.#rows.push({ kernel: this.plan.kernels[kernel]?.name ?? 'copy', dispatches: 1, ms });
    this.#last = performance.now();
  }

  times() {
    return added(this.#rows);
  }
}

/** Gives each dispatch a pass of its own, between two timestamps. */
export class GpuTimer {
  /** @type {GPUQuerySet[]} */
  #sets = [];
  /** @type {string[]} */
  #kernels = [];

  /** @param {Plan} plan @param {import('./gpu_device.js').GpuDevice} device */
  constructor(plan, device) {
    checkTimed(plan);
    this.plan = plan;
    this.device = device.device;
  }

  /** What the next pass is begun with. @param {number} kernel @returns {GPUComputePassDescriptor} */
  pass(kernel) {
    const at = this.#kernels.push(this.plan.kernels[kernel].name) - 1;
    if (at % MOST === 0) this.#sets.push(this.device.createQuerySet({ type: 'timestamp', count: 2 * MOST }));
    const first = 2 * (at % MOST);
    const querySet = this.#sets[this.#sets.length - 1];
    return {
      timestampWrites: { querySet, beginningOfPassWriteIndex: first, endOfPassWriteIndex: first + 1 },
    };
  }

  /** When all passes are submitted. @returns {Promise<KernelTime[]>} */
  async times() {
    const size = 16 * MOST * Math.max(1, this.#sets.length);
    const { QUERY_RESOLVE, COPY_SRC, COPY_DST, MAP_READ } = GPUBufferUsage;
    const resolved = this.device.createBuffer({ size, usage: QUERY_RESOLVE | COPY_SRC });
    const back = this.device.createBuffer({ size, usage: COPY_DST | MAP_READ });
    try {
      const commands = this.device.createCommandEncoder();
      this.#sets.forEach((set, i) => commands.resolveQuerySet(set, 0, 2 * MOST, resolved, 16 * MOST * i));
      commands.copyBufferToBuffer(resolved, 0, back, 0, size);
      this.device.queue.submit([commands.finish()]);
      await back.mapAsync(GPUMapMode.READ);
      const ns = new BigUint64Array(back.getMappedRange());
      return added(this.#kernels.map((kernel, i) => {
        // a clock that was set back between the two tells nothing
        const ms = Math.max(0, Number(BigInt.asIntN(64, ns[2 * i + 1] - ns[2 * i])) / 1e6);
        return { kernel, dispatches: 1, ms };
      }));
    } finally {
      resolved.destroy();
      back.destroy();
    }
  }

  destroy() {
    for (const set of this.#sets) set.destroy();
  }
}
