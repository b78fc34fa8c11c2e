// The steps of a webgpu plan, replayed: dims, command encoding, submits, bytes in and out. Runs of
// dispatches share one compute pass, across loops and calls; copies end it; a read, or a changed
// dim, ends the submit. Buffers, pipelines and bind groups are given to it ready made (gpu.js makes
// them).

import { BufferSizes } from './buffer_sizes.js';
import { PlanError } from './errors.js';
import { boundBytes } from './gpu_memory.js';
import { COMPARISONS, RESERVED_DIMS, stepsOf } from './plan.js';
import { checkDims, checkRange } from './session.js';
import { evaluate } from './sizes.js';

/** @typedef {import('./plan.js').Plan} Plan */
/** @typedef {import('./plan.js').Size} Size */
/** @typedef {import('./plan.js').Step} Step */
/** @typedef {{buffer: GPUBuffer, offset: number}} Place */
/**
 * @typedef {{pipeline: number, bindGroup: GPUBindGroup}} Prepared what a dispatch needs; index of the kernel
 */

/**
 * The slot of the ring for reads that the replay itself waits for; the others belong to `repeat`.
 */
const OWN_SLOT = 2;

export class Replay {
  /** @type {Map<string, Place>} where each buffer of the plan is */
  places = new Map();
  /** @type {Map<string, number>} bytes that are bound of buffers of free size: what they have */
  capacity = new Map();
  /** @type {GPUComputePipeline[]} */
  pipelines = [];
  /** @type {Map<Step, Prepared>} */
  prepared = new Map();
  /** @type {GPUBuffer | null} */
  uniformBuffer = null;

  /** @type {import('./timing.js').GpuTimer | null} of a profile in progress */
  timer = null;

  /** @type {Set<Step | Step[]>} steps, and lists of steps, with a read inside */
  #reading = new Set();
  /** @type {Map<string, number>} */
  #values = new Map();
  #dimsChanged = true;
  /** @type {Promise<unknown>[]} */
  #inFlight = [];
  /** @type {GPUCommandEncoder | null} */
  #encoder = null;
  /** @type {GPUComputePassEncoder | null} */
  #pass = null;
  #current = -1;
  /** @type {GPUBuffer[]} to map and read back through */
  #ring = [];

  /** @param {Plan} plan @param {import('./gpu_device.js').GpuDevice} device */
  constructor(plan, device) {
    this.plan = plan;
    this.device = device;
    this.queue = device.queue;
    this.hostDims = [...plan.dims.values()].filter((d) => d.kind === 'host');
    this.sizes = new BufferSizes(plan);
    for (const { name, max, free } of this.hostDims)
      this.#values.set(name, free || RESERVED_DIMS.includes(name) ? 0 : max);
    this.uniform = new Uint32Array(Math.max(4, Math.ceil(this.hostDims.length / 4) * 4));
    for (const steps of [...plan.programs.values(), ...plan.weights.map((w) => w.steps)])
      this.#mark(steps);
  }

  /** Notes where a read is inside. @param {Step[]} steps */
  #mark(steps) {
    for (const step of steps) {
      const inner = step.op === 'branch' ? [step.then, step.else] : [];
      if (step.op === 'loop') inner.push(step.body);
      if (step.op === 'call') inner.push(this.plan.programs.get(step.program) ?? []);
      for (const list of inner) this.#mark(list);
      if (step.op === 'read' || inner.some((list) => this.#reading.has(list))) {
        this.#reading.add(step);
        this.#reading.add(steps);
      }
    }
  }

  // --- steps

  /** Encodes `steps`; submits and waits only where they read back. @param {Step[]} steps */
  async play(steps) {
    if (!this.#reading.has(steps)) return this.#encode(steps);
    for (const step of steps) {
      if (!this.#reading.has(step)) this.#encode([step]);
      else if (step.op === 'read') await this.#readDim(step.dim, step.buffer, step.offset);
      else if (step.op === 'branch') await this.play(this.#holds(step) ? step.then : step.else);
      else if (step.op === 'loop')
        for (let i = this.#size(step.count); i > 0; i--) await this.play(step.body);
      else if (step.op === 'call') await this.play(this.plan.programs.get(step.program) ?? []);
    }
  }

  /** Steps without a read. @param {Step[]} steps @returns {void} */
  #encode(steps) {
    for (const step of steps) {
      if (step.op === 'dispatch') this.#dispatch(step);
      else if (step.op === 'copy') this.#copy(step);
      else if (step.op === 'branch') this.#encode(this.#holds(step) ? step.then : step.else);
      else if (step.op === 'loop')
        for (let i = this.#size(step.count); i > 0; i--) this.#encode(step.body);
      else if (step.op === 'call') this.#encode(this.plan.programs.get(step.program) ?? []);
    }
  }

  /** @param {import('./plan.js').Dispatch} step */
  #dispatch(step) {
    const x = this.#size(step.grid[0]);
    const y = this.#size(step.grid[1]);
    const z = this.#size(step.grid[2]);
    if (x <= 0 || y <= 0 || z <= 0) return;
    const most = this.device.limits.maxComputeWorkgroupsPerDimension;
    if (Math.max(x, y, z) > most) {
      throw new PlanError('more workgroups than this device has on an axis', {
        where: `kernel ${this.plan.kernels[step.kernel].name}`,
        got: `${x} × ${y} × ${z}`,
        wanted: `at most ${most}`,
        hint: 'Run with smaller inputs.',
      });
    }
    const { pipeline, bindGroup } = /** @type {Prepared} */ (this.prepared.get(step));
    if (this.timer) this.#endPass();
    if (!this.#pass) {
      this.#pass = this.#commands().beginComputePass(this.timer?.pass(step.kernel));
      this.#current = -1;
    }
    if (this.#current !== pipeline) this.#pass.setPipeline(this.pipelines[pipeline]);
    this.#current = pipeline;
    this.#pass.setBindGroup(0, bindGroup);
    this.#pass.dispatchWorkgroups(x, y, z);
  }

  /** @param {import('./plan.js').Copy} step */
  #copy(step) {
    const [from, to] = [this.#size(step.source_offset), this.#size(step.target_offset)];
    this.copyBytes(step.source, from, step.target, to, this.#size(step.bytes));
  }

  /** Encodes a copy. @param {string} source @param {number} from
   * @param {string} target @param {number} to @param {number} bytes */
  copyBytes(source, from, target, to, bytes) {
    if (bytes <= 0) return;
    this.#endPass();
    checkRange(source, this.bytes.get(source), from, bytes);
    checkRange(target, this.bytes.get(target), to, bytes);
    const [a, b] = [this.#place(source), this.#place(target)];
    this.#commands().copyBufferToBuffer(a.buffer, a.offset + from, b.buffer, b.offset + to, bytes);
  }

  /** @param {string} dim @param {string} buffer @param {number} offset */
  async #readDim(dim, buffer, offset) {
    const bytes = await this.readBack(buffer, offset, 4, OWN_SLOT);
    const value = new DataView(bytes.buffer).getInt32(0, true);
    checkDims(this.plan, { [dim]: value }, true);
    this.setDim(dim, value);
  }

  /** @param {import('./plan.js').Branch} step */
  #holds(step) {
    return COMPARISONS.get(step.compare)?.(this.#size(step.a), this.#size(step.b)) ?? false;
  }

  /** @param {Size} size */
  #size(size) {
    return typeof size === 'number' ? size : evaluate(size, this.#values, this.plan.maxima);
  }

  /** Bytes of each buffer, as the plan and the dims say. */
  get bytes() {
    return this.sizes.bytes;
  }

  /** The host dims now. @returns {ReadonlyMap<string, number>} */
  get values() {
    return this.#values;
  }

  /** @param {string} name */
  #place(name) {
    return /** @type {Place} */ (this.places.get(name));
  }

  /** The whole buffer, to be bound. @param {string} name @returns {GPUBufferBinding} */
  binding(name) {
    const size = this.capacity.get(name) ?? this.bytes.get(name) ?? 0;
    return { ...this.#place(name), size: boundBytes(size) };
  }

  // --- dims and the queue

  /**
   * Sets a host dim, after submitting what was encoded with its old value.
   * @param {string} name
   * @param {number} value
   */
  setDim(name, value) {
    if (!this.#values.has(name) || this.#values.get(name) === value) return;
    this.submit();
    this.#values.set(name, value);
    this.#dimsChanged = true;
  }

  #commands() {
    if (this.#encoder) return this.#encoder;
    if (this.#dimsChanged && this.uniformBuffer) {
      this.hostDims.forEach(({ name }, i) => (this.uniform[i] = this.#values.get(name) ?? 0));
      this.queue.writeBuffer(this.uniformBuffer, 0, this.uniform);
      this.#dimsChanged = false;
    }
    this.#encoder = this.device.commands();
    return this.#encoder;
  }

  #endPass() {
    this.#pass?.end();
    this.#pass = null;
  }

  submit() {
    this.#endPass();
    if (!this.#encoder) return;
    this.queue.submit([this.#encoder.finish()]);
    this.#encoder = null;
    this.#inFlight.push(this.queue.onSubmittedWorkDone());
  }

  /** Forgets what was encoded and not submitted. */
  drop() {
    this.#pass = this.#encoder = null;
  }

  /** Waits until at most `most` submits are unfinished. @param {number} most */
  async room(most) {
    while (this.#inFlight.length > most) await this.#inFlight.shift();
    this.device.check();
  }

  // --- bytes

  /** Writes after all that was encoded so far; padded to 4 bytes.
   * @param {string} name @param {number} offset @param {Uint8Array} bytes */
  write(name, offset, bytes) {
    this.submit();
    const data = /** @type {Uint8Array<ArrayBuffer>} */ (bytes);
    const even = data.length & ~3;
    const { buffer, offset: start } = this.#place(name);
    if (even) this.queue.writeBuffer(buffer, start + offset, data, 0, even);
    if (even === data.length) return;
    const tail = new Uint8Array(4);
    tail.set(data.subarray(even));
    this.queue.writeBuffer(buffer, start + offset + even, tail);
  }

  /** Submits what is encoded, with a copy of the bytes; resolves when they are here.
   * @param {string} name
   * @param {number} offset
   * @param {number} [length]
   * @param {number} [slot] of the ring, free
   */
  async readBack(name, offset, length, slot = OWN_SLOT) {
    const wanted = checkRange(name, this.bytes.get(name), offset, length);
    const size = Math.ceil(wanted / 4) * 4;
    if (size === 0) return new Uint8Array();
    const target = this.#slot(slot, size);
    this.#endPass();
    const { buffer, offset: start } = this.#place(name);
    this.#commands().copyBufferToBuffer(buffer, start + offset, target, 0, size);
    this.submit();
    this.#inFlight.length = 0; // the map waits for all of them
    await target.mapAsync(GPUMapMode.READ, 0, size);
    const bytes = new Uint8Array(target.getMappedRange(0, size)).slice(0, wanted);
    target.unmap();
    this.device.check();
    return bytes;
  }

  /** @param {number} slot @param {number} size */
  #slot(slot, size) {
    const old = this.#ring[slot];
    if (old && old.size >= size) return old;
    old?.destroy();
    const usage = GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST;
    return (this.#ring[slot] = this.device.buffer(`read back ${slot}`, Math.max(size, 256), usage));
  }
}

/** The kernels of `steps`. @param {Step[]} steps @returns {number[]} */
export function kernelsOf(steps) {
  return [...stepsOf(steps)].flatMap((step) => (step.op === 'dispatch' ? [step.kernel] : []));
}
