// A WebGPU device as the executor needs it: asked for with what the adapter offers, its losses and
// errors turned into DeviceError, buffers, layouts and pipelines made through one place. Knows
// nothing of steps.

import { DeviceError, PlanError } from './errors.js';

/** @typedef {import('./plan.js').Kernel} Kernel */

/** Pipelines that compile at a time; two where the GPU is a CPU, whose compiler takes 12 MB for each. */
const PARALLEL = 8;
/** Feature → the directive that a kernel which uses it begins with. @type {Map<string, string>} */
const ENABLES = new Map([
  ['shader-f16', 'enable f16;'],
  ['subgroups', 'enable subgroups;'],
]);

/** The best adapter, or null where there is no WebGPU. @returns {Promise<GPUAdapter | null>} */
export async function requestAdapter() {
  return (await navigator.gpu?.requestAdapter({ powerPreference: 'high-performance' })) ?? null;
}

/**
 * The adapter's limits as a plain object.
 * @param {GPUAdapter} adapter
 * @returns {Record<string, number>}
 */
export function limitsOf(adapter) {
  /** @type {Record<string, number>} */
  const limits = {};
  // eslint-disable-next-line guard-for-in -- the names are getters of the prototype
  for (const name in adapter.limits) limits[name] = /** @type {any} */ (adapter.limits)[name];
  return limits;
}

/** The adapter's name for people. @param {GPUAdapter} adapter */
export function adapterName(adapter) {
  const { vendor, architecture, device, description } = adapter.info;
  return [vendor, architecture, device, description].filter(Boolean).join(' ') || 'unnamed adapter';
}

export class GpuDevice {
  /** @type {DeviceError | null} what ended the device, or the first error it reported */
  failure = null;
  #destroyed = false;
  #compiling = 0;
  /** @type {(() => void)[]} */
  #waiting = [];
  /** @type {Map<string, GPUBindGroupLayout>} */
  #layouts = new Map();
  /** @type {GPUBuffer[]} */
  #buffers = [];

  /** @param {GPUDevice} device @param {string} name @param {boolean} isCpu the GPU is a CPU */
  constructor(device, name, isCpu = false) {
    this.device = device;
    this.isCpu = isCpu;
    this.name = name;
    this.queue = device.queue;
    this.limits = device.limits;
    device.lost.then(({ reason, message }) => {
      if (this.#destroyed) return;
      this.failure = new DeviceError('the GPU was lost', {
        got: `${reason}: ${message}`,
        hint: 'Close other pages that use the GPU and reload; if it comes back, use the wasm device.',
      });
    });
    device.addEventListener('uncapturederror', (event) => {
      const { error } = /** @type {GPUUncapturedErrorEvent} */ (event);
      event.preventDefault();
      this.failure ??= gpuError(error);
    });
  }

  /**
   * A device with all limits of the adapter and the features of `wanted`.
   * @param {Set<string>} wanted
   */
  static async request(wanted) {
    const adapter = await requestAdapter();
    if (!adapter) {
      throw new DeviceError('this browser offers no WebGPU adapter', {
        hint: 'Use the wasm device, or turn on hardware acceleration and reload.',
      });
    }
    const missing = [...wanted].filter((feature) => !adapter.features.has(feature));
    if (missing.length) {
      throw new PlanError('the device lacks features that the plan needs', {
        got: missing.join(', '),
        hint: 'Compile again for this device.',
      });
    }
    try {
      const requiredFeatures = /** @type {GPUFeatureName[]} */ ([...wanted]);
      const device = await adapter.requestDevice({
        requiredFeatures,
        requiredLimits: limitsOf(adapter),
      });
      return new GpuDevice(device, adapterName(adapter), adapter.info.isFallbackAdapter);
    } catch (cause) {
      throw new DeviceError('the GPU gave no device', {
        got: cause,
        cause,
        hint: 'Reload, or use the wasm device.',
      });
    }
  }

  /** Throws what went wrong since, if anything did. */
  check() {
    if (this.failure) throw this.failure;
  }

  /**
   * Runs `make`; throws DeviceError where the memory is not there.
   * @param {number} bytes
   * @param {() => void} make
   */
  async allocate(bytes, make) {
    this.device.pushErrorScope('validation');
    this.device.pushErrorScope('out-of-memory');
    let thrown;
    try {
      make();
    } catch (cause) {
      thrown = cause;
    }
    const error =
      (await this.device.popErrorScope()) ?? (await this.device.popErrorScope()) ?? thrown;
    if (error) {
      throw new DeviceError(`the GPU could not give ${Math.ceil(bytes / 2 ** 20)} MB`, {
        got: /** @type {Error} */ (error).message || 'out of memory',
        cause: error,
        hint: 'Close other pages, or choose a smaller model or context.',
      });
    }
  }

  /** @param {string} label @param {number} size @param {number} usage */
  buffer(label, size, usage) {
    const buffer = this.device.createBuffer({ label, size, usage });
    this.#buffers.push(buffer);
    return buffer;
  }

  /** Destroys a buffer before the device goes. @param {GPUBuffer} buffer */
  release(buffer) {
    buffer.destroy();
    this.#buffers = this.#buffers.filter((held) => held !== buffer);
  }

  /**
   * The layout of a kernel's bindings, equal ones once.
   * @param {string[]} access
   * @param {boolean} dims
   */
  layout(access, dims) {
    const key = `${access.join()} ${dims}`;
    let layout = this.#layouts.get(key);
    if (!layout) {
      /** @type {GPUBufferBindingType[]} */
      const types = access.map((a) => (a === 'read' ? 'read-only-storage' : 'storage'));
      if (dims) types.push('uniform');
      layout = this.device.createBindGroupLayout({
        entries: types.map((type, binding) => ({
          binding,
          visibility: GPUShaderStage.COMPUTE,
          buffer: { type },
        })),
      });
      this.#layouts.set(key, layout);
    }
    return layout;
  }

  /** @param {GPUBindGroupLayout} layout @param {GPUBufferBinding[]} bindings */
  bindGroup(layout, bindings) {
    return this.device.createBindGroup({
      layout,
      entries: bindings.map((resource, binding) => ({ binding, resource })),
    });
  }

  commands() {
    return this.device.createCommandEncoder();
  }

  /**
   * Compiles a kernel, a few at a time. Throws PlanError with the compiler's words.
   * @param {Kernel} kernel
   */
  async pipeline(kernel) {
    if (this.#compiling >= (this.isCpu ? 2 : PARALLEL))
      await new Promise((resolve) => this.#waiting.push(() => resolve(undefined)));
    this.#compiling += 1;
    try {
      return await this.#compile(kernel);
    } finally {
      this.#compiling -= 1;
      this.#waiting.shift()?.();
    }
  }

  /** @param {Kernel} kernel */
  async #compile({ name, code, access, dims, features }) {
    const header = features.map((feature) => ENABLES.get(feature) ?? '').join('');
    this.device.pushErrorScope('validation');
    const module = this.device.createShaderModule({ label: name, code: `${header}\n${code}` });
    const layout = this.device.createPipelineLayout({
      bindGroupLayouts: [this.layout(access, dims)],
    });
    const invalid = this.device.popErrorScope();
    try {
      return await this.device.createComputePipelineAsync({
        label: name,
        layout,
        compute: { module, entryPoint: 'main' },
      });
    } catch (cause) {
      this.check();
      if (this.#destroyed) throw new DeviceError('the device was given back', { cause });
      const { messages } = await module.getCompilationInfo();
      const first = messages.find((m) => m.type === 'error');
      const got = first
        ? `line ${first.lineNum - 1}: ${first.message}`
        : /** @type {Error} */ (cause).message;
      throw new PlanError('the kernel does not compile', { where: `kernel ${name}`, got, cause });
    } finally {
      await invalid;
    }
  }

  destroy() {
    this.#destroyed = true;
    for (const buffer of this.#buffers) buffer.destroy();
    this.device.destroy();
  }
}

/** @param {GPUError} error @returns {DeviceError} */
function gpuError(error) {
  if (error instanceof GPUOutOfMemoryError) {
    return new DeviceError('the GPU is out of memory', {
      got: error.message,
      hint: 'Close other pages, or choose a smaller model or context.',
    });
  }
  return new DeviceError('the GPU reported an error', {
    got: error.message,
    hint: 'This is a fault of the plan or of the browser: please report it.',
  });
}
