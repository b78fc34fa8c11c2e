// Executor of webgpu plans. In: a plan and its files. Out: a session with run, read, repeat and
// dispose. All that can be made at load is made at load: buffers, pipelines, bind groups. Buffers of
// free size get memory when a run first needs it, and only then are their bind groups made anew.
// Weights stream in while pipelines compile. Knows nothing of models. The steps themselves are replayed by
// gpu_replay.js.

import { grown } from './buffer_sizes.js';
import { DeviceError, FanlightError, PlanError, throwIfAborted } from './errors.js';
import { GpuDevice } from './gpu_device.js';
import { packs } from './gpu_memory.js';
import { Replay, kernelsOf } from './gpu_replay.js';
import { STAGING, readPlan, stepsOf } from './plan.js';
import { Turns, checkDims, checkFeeds, checkRange, hostDims, newName, programOf } from './session.js';
import { GpuTimer } from './timing.js';
import { weightBytes, weightChunks } from './weights.js';

/** @typedef {import('./plan.js').Plan} Plan */
/** @typedef {import('./session.js').Progress} Progress */
/** @typedef {import('./weights.js').File} File */

/** Bytes written to the queue before the GPU must have taken the earlier ones. */
const WINDOW = 1 << 20;
/** The largest single write. */
const CHUNK = 512 << 10;
/** Submits that may be unfinished at a time. */
const IN_FLIGHT = 2;

/**
 * Loads a plan: weights resident, pipelines made. Throws PlanError, DeviceError, StoreError,
 * AbortedError;
 * then nothing is left behind.
 * @param {ArrayBuffer | Uint8Array} planBytes @param {Map<string, File>} files
 * @param {import('./session.js').LoadOptions} [options] @returns {Promise<GpuSession>}
 */
export async function load(planBytes, files, { progress, signal } = {}) {
  const plan = readPlan(planBytes);
  if (plan.target !== 'webgpu') throw new PlanError('not a plan for webgpu', { got: plan.target });
  throwIfAborted(signal);
  const device = await GpuDevice.request(
    new Set([...plan.features, ...plan.kernels.flatMap((k) => k.features)]),
  );
  const session = new GpuSession(plan, device);
  try {
    await session.load(files, progress ?? (() => {}), signal);
    return session;
  } catch (error) {
    await session.dispose();
    throw device.failure ?? error;
  }
}

/** A loaded plan; session.js says what the calls promise. */
export class GpuSession {
  #turns = new Turns();
  /** @type {Promise<GPUComputePipeline>[]} by kernel */
  #pipelines = [];
  /** @type {unknown} why a pipeline could not be made */
  #broken = null;
  /** @type {Map<string, GPUBindGroup>} by access and buffers */
  #groups = new Map();
  /** @type {Map<number, GPUBuffer[]>} of the buffers of free size, by their levels */
  #freePacks = new Map();
  #fixedBytes = 0;

  /** @param {Plan} plan @param {GpuDevice} device */
  constructor(plan, device) {
    this.plan = plan;
    this.device = device;
    this.replay = new Replay(plan, device);
    /** @type {import('./session.js').SessionInfo} */
    this.info = {
      backend: 'webgpu',
      adapter: device.name,
      resident_bytes: 0,
      upload_ms: 0,
      pipelines_ms: 0,
      threads: 1,
      growths: 0,
      extra: {},
    };
  }

  // --- load

  /**
   * @param {Map<string, File>} files
   * @param {(progress: Progress) => void} progress
   * @param {AbortSignal} [signal]
   */
  async load(files, progress, signal) {
    const begin = performance.now();
    this.#makePipelines(progress);
    const made = Promise.all(this.#pipelines).then((pipelines) => {
      this.replay.pipelines = pipelines;
      this.info.pipelines_ms = performance.now() - begin;
    });
    made.catch((error) => (this.#broken = error));
    await this.#makeBuffers();
    this.#prepare();
    if (this.device.isCpu) await made; // its compiler's memory is given back before the weights take theirs
    const upload = performance.now();
    await this.#upload(files, progress, signal);
    this.info.upload_ms = performance.now() - upload;
    await made;
    throwIfAborted(signal);
    for (const { name, max, free } of this.replay.hostDims)
      this.replay.setDim(name, free ? 0 : max);
    if (this.plan.programs.has('load')) await this.run('load');
    await this.replay.room(0);
    this.device.check();
  }

  async #makeBuffers() {
    const { device, replay } = this;
    const fixed = new Map(replay.bytes);
    for (const { name } of replay.sizes.free) {
      fixed.delete(name);
      replay.capacity.set(name, replay.bytes.get(name) ?? 0);
    }
    for (const [name, bytes] of fixed) {
      this.#checkSize(name, bytes, 'Compile again for this device.');
      this.#fixedBytes += bytes;
    }
    this.info.resident_bytes = this.#fixedBytes;
    await device.allocate(this.#fixedBytes, () => {
      this.#place(fixed);
      this.#placeFree(new Set(replay.sizes.level.values()));
      const kind = GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST;
      replay.uniformBuffer = device.buffer('dims', replay.uniform.byteLength, kind);
    });
  }

  /** GPU buffers for `sizes`. @param {Map<string, number>} sizes @returns {GPUBuffer[]} */
  #place(sizes) {
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
    return packs(this.plan, sizes).map(({ names, offsets, bytes }, number) => {
      const buffer = this.device.buffer(`pack ${number}`, bytes, usage);
      names.forEach((name, i) => this.replay.places.set(name, { buffer, offset: offsets[i] }));
      return buffer;
    });
  }

  /** GPU buffers for all buffers of free size of these levels. @param {Set<number>} levels */
  #placeFree(levels) {
    const { capacity, sizes } = this.replay;
    for (const level of levels) {
      const same = [...capacity].filter(([name]) => sizes.level.get(name) === level);
      this.#freePacks.set(level, this.#place(new Map(same)));
    }
  }

  /** @param {Set<number>} levels */
  #releaseFree(levels) {
    for (const level of levels)
      for (const buffer of this.#freePacks.get(level) ?? []) this.device.release(buffer);
  }

  /** @param {string} name @param {number} bytes @param {string} hint */
  #checkSize(name, bytes, hint) {
    if (bytes <= this.#most) return;
    throw new PlanError('a buffer is larger than this device binds', {
      where: `buffer ${name}`,
      got: bytes,
      wanted: `at most ${this.#most}`,
      hint,
    });
  }

  /** Bytes that one buffer may have. */
  get #most() {
    const { maxBufferSize, maxStorageBufferBindingSize } = this.device.limits;
    return Math.min(maxBufferSize, maxStorageBufferBindingSize);
  }

  /**
   * More memory, if buffers of free size need it now; the bytes of all of their level are lost. What fails
   * leaves all levels without memory, and the session as usable as before.
   */
  async #grow() {
    const { device, replay } = this;
    const { bytes, capacity, sizes } = replay;
    const need = (/** @type {string} */ name) => bytes.get(name) ?? 0;
    const small = sizes.free.filter(({ name }) => need(name) > (capacity.get(name) ?? 0));
    for (const { name } of small) this.#checkSize(name, need(name), 'Run with smaller inputs.');
    if (!small.length) return;
    for (const { name } of small)
      capacity.set(name, grown(capacity.get(name) ?? 0, need(name), this.#most));
    const whole = [...capacity.values()].reduce((sum, size) => sum + size, 0);
    const levels = new Set(small.map(({ name }) => sizes.level.get(name) ?? 0));
    this.#releaseFree(levels);
    try {
      await device.allocate(whole, () => this.#placeFree(levels));
      this.info.growths += 1;
      this.info.resident_bytes = this.#fixedBytes + whole;
    } catch (error) {
      for (const name of capacity.keys()) capacity.set(name, 0);
      const all = new Set(sizes.level.values());
      this.#releaseFree(all);
      this.#placeFree(all);
      this.info.resident_bytes = this.#fixedBytes;
      throw error;
    } finally {
      this.#groups.clear();
      this.#prepare();
    }
  }

  /** Bind groups of all dispatches, equal ones once. */
  #prepare() {
    const { device, replay } = this;
    const { kernels, programs, weights } = this.plan;
    const groups = this.#groups;
    const lists = [...programs.values(), ...weights.map((w) => w.steps)];
    for (const step of lists.flatMap((steps) => [...stepsOf(steps)])) {
      if (step.op !== 'dispatch') continue;
      const { access, dims } = kernels[step.kernel];
      const key = JSON.stringify([access, dims, step.buffers]);
      let bindGroup = groups.get(key);
      if (!bindGroup) {
        const bound = step.buffers.map((name) => replay.binding(name));
        if (dims) bound.push({ buffer: /** @type {GPUBuffer} */ (replay.uniformBuffer) });
        bindGroup = device.bindGroup(device.layout(access, dims), bound);
        groups.set(key, bindGroup);
      }
      replay.prepared.set(step, { pipeline: step.kernel, bindGroup });
    }
  }

  /**
   * Starts all pipelines, those that weights need first.
   * @param {(progress: Progress) => void} progress
   */
  #makePipelines(progress) {
    const { kernels, weights } = this.plan;
    const total = kernels.length;
    let done = 0;
    const first = weights.flatMap((w) => kernelsOf(w.steps));
    for (const number of new Set([...first, ...kernels.keys()])) {
      this.#pipelines[number] = this.device.pipeline(kernels[number]).then((pipeline) => {
        done += 1;
        progress({ stage: 'compile', done, total });
        return pipeline;
      });
      this.#pipelines[number].catch(() => {}); // awaited by load
    }
  }

  /**
   * @param {Map<string, File>} files
   * @param {(progress: Progress) => void} progress
   * @param {AbortSignal} [signal]
   */
  async #upload(files, progress, signal) {
    const { plan, replay } = this;
    const { queue } = this.device;
    const total = weightBytes(plan);
    const staging = replay.bytes.get(STAGING) ?? 0;
    let done = 0;
    let unsent = 0;
    /** @type {Promise<unknown>} */
    let window = Promise.resolve();
    const limit = (/** @type {import('./plan.js').Weight} */ { steps, unit }) =>
      steps.length ? staging : Math.max(CHUNK, unit);
    for await (const { weight, first, count, bytes } of weightChunks(plan, files, limit)) {
      throwIfAborted(signal);
      this.device.check();
      if (this.#broken) throw this.#broken;
      if (weight.steps.length) {
        for (const n of kernelsOf(weight.steps)) replay.pipelines[n] ??= await this.#pipelines[n];
        replay.write(STAGING, 0, bytes);
        replay.setDim('unit_first', first);
        replay.setDim('unit_count', count);
        await replay.play(weight.steps);
        replay.submit();
        await replay.room(IN_FLIGHT * 8);
      } else {
        const place = first * weight.unit;
        const end = place + bytes.length;
        const most = replay.bytes.get(weight.buffer) ?? 0;
        if (end > most)
          throw new PlanError('too many bytes', {
            where: `weight ${weight.name}`,
            got: end,
            wanted: most,
          });
        replay.write(weight.buffer, place, bytes);
      }
      done += bytes.length;
      unsent += bytes.length;
      progress({ stage: 'load', done, total });
      if (unsent >= WINDOW) {
        await window;
        queue.submit([]); // starts the writes, or the wait would not end
        window = queue.onSubmittedWorkDone();
        unsent = 0;
      }
    }
    queue.submit([]);
    await queue.onSubmittedWorkDone();
  }

  // --- calls

  /**
   * Writes feeds, sets dims, runs; resolves when all is submitted and at most one submit is
   * unfinished.
   * @param {string} program
   * @param {Record<string, import('./session.js').Feed>} [feeds]
   * @param {Record<string, number>} [dims]
   */
  run(program, feeds = {}, dims = {}) {
    return this.#call(async () => {
      const steps = await this.#begin(program, feeds, dims);
      await this.replay.play(steps);
      await this.replay.room(IN_FLIGHT - 1);
      this.replay.submit();
    });
  }

  /** As `run`; what each kernel took.
   * @param {string} program @param {Record<string, import('./session.js').Feed>} [feeds]
   * @param {Record<string, number>} [dims] @returns {Promise<import('./timing.js').KernelTime[]>} */
  profile(program, feeds = {}, dims = {}) {
    return this.#call(async () => {
      const timer = new GpuTimer(this.plan, this.device);
      try {
        const steps = await this.#begin(program, feeds, dims);
        this.replay.timer = timer;
        await this.replay.play(steps);
        this.replay.submit();
        return await timer.times();
      } finally {
        this.replay.timer = null;
        timer.destroy();
      }
    });
  }

  /**
   * Bytes of a buffer after all earlier runs.
   * @param {string} name
   * @param {number} [offset]
   * @param {number} [length]
   */
  read(name, offset = 0, length) {
    return this.#call(() => this.replay.readBack(name, offset, length));
  }

  /** Copies the first bytes of a buffer; see session.js.
   * @param {string} name @param {number} length @returns {Promise<string>} */
  hold(name, length) {
    return this.#call(async () => {
      const { device, replay } = this;
      const bytes = checkRange(name, replay.bytes.get(name), 0, length);
      const held = newName(replay.bytes);
      const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
      await device.allocate(bytes, () => {
        const buffer = device.buffer(held, Math.max(16, bytes), usage);
        replay.places.set(held, { buffer, offset: 0 });
      });
      replay.bytes.set(held, bytes);
      replay.copyBytes(name, 0, held, 0, bytes);
      replay.submit();
      return held;
    });
  }

  /** Gives a held buffer back. @param {string} held */
  async release(held) {
    if (this.#turns.closed) return;
    await this.#call(async () => {
      const place = this.replay.places.get(held);
      if (!place || this.plan.buffers.has(held)) return;
      this.replay.bytes.delete(held);
      this.device.release(place.buffer);
      this.replay.places.delete(held);
    });
  }

  /** The host dims after all earlier runs. @returns {Promise<Record<string, number>>} */
  dims() {
    return this.#call(async () =>
      Object.fromEntries(hostDims(this.plan).map((n) => [n, this.replay.values.get(n) ?? 0])),
    );
  }

  /**
   * Runs `program` up to `times` times; `onChunk` gets the bytes of `read` after each, in order,
   * while the
   * next run is on its way. Stops where it returns false; throws AbortedError where `signal` is
   * aborted.
   * @param {string} program
   * @param {number} times
   * @param {string} read
   * @param {Record<string, number>} dims
   * @param {(bytes: Uint8Array<ArrayBuffer>) => unknown} onChunk @param {AbortSignal} [signal] */
  repeat(program, times, read, dims, onChunk, signal) {
    return this.#call(async () => {
      const steps = await this.#begin(program, {}, dims);
      /** @type {Promise<Uint8Array<ArrayBuffer>>[]} */
      const behind = [];
      let stopped = false;
      const take = async () => {
        const bytes = await /** @type {Promise<Uint8Array<ArrayBuffer>>} */ (behind.shift());
        if (!stopped && !signal?.aborted) stopped = onChunk(bytes) === false;
      };
      try {
        for (let i = 0; i < times; i++) {
          if (behind.length === IN_FLIGHT) await take();
          if (stopped || signal?.aborted) break;
          await this.replay.play(steps);
          const bytes = this.replay.readBack(read, 0, undefined, i % IN_FLIGHT);
          bytes.catch(() => {}); // awaited by take
          behind.push(bytes);
        }
        while (behind.length) await take();
      } finally {
        await Promise.allSettled(behind);
      }
      throwIfAborted(signal);
    });
  }

  /** Gives all memory back, after the call in progress. */
  async dispose() {
    await this.#turns.close();
    this.device.destroy();
  }

  /** @template T @param {() => Promise<T>} work @returns {Promise<T>} */
  #call(work) {
    return this.#turns.take(async () => {
      this.device.check();
      try {
        return await work();
      } catch (error) {
        this.replay.drop();
        if (this.device.failure) throw this.device.failure;
        if (error instanceof FanlightError) throw error;
        throw new DeviceError('the GPU refused the work', { got: error, cause: error });
      }
    });
  }

  /**
   * Checks and applies a call's arguments.
   * @param {string} program
   * @param {Record<string, import('./session.js').Feed>} feeds
   * @param {Record<string, number>} dims */
  async #begin(program, feeds, dims) {
    const { sizes, values } = this.replay;
    const steps = programOf(this.plan, program);
    checkDims(this.plan, dims);
    try {
      sizes.update(new Map([...values, ...Object.entries(dims)]));
      checkFeeds(this.plan, feeds, (name) => sizes.bytes.get(name));
      await this.#grow();
    } catch (error) {
      sizes.update(new Map(values));
      throw error;
    }
    for (const [name, value] of Object.entries(dims)) this.replay.setDim(name, value);
    for (const [name, bytes] of Object.entries(feeds)) {
      if (typeof bytes !== 'string') this.replay.write(name, 0, bytes);
      else this.replay.copyBytes(bytes, 0, name, 0, sizes.bytes.get(bytes) ?? 0);
    }
    return steps;
  }
}
