// The memory of a wasm plan: one for everything. Buffers lie at offsets fixed at load, but for those of free
// size, which lie behind the others, where a run's dims put them; the memory grows for them. Knows nothing of runs.

import { BufferSizes, grown } from './buffer_sizes.js';
import { DeviceError } from './errors.js';

/** @typedef {import('./plan.js').Plan} Plan */

const PAGE = 65536;
const MOST_PAGES = 65536;
/** Buffers begin at multiples of this. */
const ALIGN = 64;

export class WasmMemory {
  /** @type {Map<string, {at: number, bytes: number}>} */
  places = new Map();

  /** Throws DeviceError where it can't be had.
   * @param {Plan} plan @param {import('./plan.js').WasmModule} module @param {number} threads */
  constructor(plan, module, threads) {
    this.plan = plan;
    this.module = module;
    this.sizes = new BufferSizes(plan, new Map([['threads', threads]]));
    const fixed = [...plan.buffers.values()].filter((b) => !this.sizes.free.includes(b));
    /** Where the buffers of free size begin. */
    this.fixedEnd = this.#layOut(fixed, module.reserved);
    /** Bytes in use at load. */
    this.end = this.layOutFree();
    this.memory = allocate(this.end, module.threads, this.sizes.free.length > 0);
    this.bytes = new Uint8Array(this.memory.buffer);
    this.view = new DataView(this.memory.buffer);
  }

  /**
   * Gives `buffers` their places from `end` on; returns the end of the last.
   * @param {import('./plan.js').Buffer[]} buffers @param {number} end
   */
  #layOut(buffers, end) {
    for (const { name } of buffers) {
      const at = Math.ceil(end / ALIGN) * ALIGN;
      const bytes = this.sizes.bytes.get(name) ?? 0;
      this.places.set(name, { at, bytes });
      end = at + Math.ceil(bytes / 4) * 4;
    }
    return end;
  }

  /** Places for the buffers of free size, as `sizes` are now; returns their end. */
  layOutFree() {
    return this.#layOut(this.sizes.free, this.fixedEnd);
  }

  /**
   * Puts the buffers of free size where `sizes` want them; their bytes are lost. Returns whether the memory
   * has grown; throws DeviceError where it can't.
   */
  move() {
    if (!this.sizes.free.length) return false;
    const end = this.layOutFree();
    const have = this.memory.buffer.byteLength / PAGE;
    const need = Math.ceil(end / PAGE);
    if (need > have) this.#grow([grown(have, need, MOST_PAGES), need], have, end);
    this.writeAddresses();
    return need > have;
  }

  /** @param {number[]} sizes in pages, the preferred one first @param {number} have @param {number} end in bytes */
  #grow(sizes, have, end) {
    /** @type {unknown} */
    let cause = new RangeError('WebAssembly has 4 GB');
    for (const pages of sizes.filter((size) => size <= MOST_PAGES)) {
      try {
        this.memory.grow(pages - have);
        this.bytes = new Uint8Array(this.memory.buffer);
        this.view = new DataView(this.memory.buffer);
        return;
      } catch (error) {
        cause = error;
      }
    }
    throw new DeviceError('the memory for these inputs can not be had', {
      got: `${end} bytes; ${cause}`,
      cause,
      hint: 'Run with smaller inputs, or use the webgpu device.',
    });
  }

  /** Tells the module where the buffers are. */
  writeAddresses() {
    // In the plan's order, which is that of its buffers.
    [...this.plan.buffers.keys()].forEach((name, i) =>
      this.view.setUint32(this.module.buffers_at + 4 * i, this.places.get(name)?.at ?? 0, true),
    );
  }
}

/**
 * A memory of at least `bytes`. One that grows may become as large as the browser lets it: shared
 * memory reserves its addresses at once, so that is tried from the most on.
 * @param {number} bytes @param {boolean} shared @param {boolean} grows
 */
function allocate(bytes, shared, grows) {
  const pages = Math.ceil(bytes / PAGE);
  const hint = 'Choose a smaller model or context, close other pages, or use the webgpu device.';
  if (pages > MOST_PAGES) {
    throw new DeviceError('the plan needs more than the 4 GB that WebAssembly has', {
      got: bytes,
      hint,
    });
  }
  try {
    for (let maximum = MOST_PAGES; grows && maximum > pages; maximum /= 2) {
      try {
        return new WebAssembly.Memory({ initial: pages, maximum, shared });
      } catch {
        // fewer addresses, then
      }
    }
    return new WebAssembly.Memory({ initial: pages, maximum: pages, shared });
  } catch (cause) {
    throw new DeviceError(`the browser could not give ${bytes} bytes of memory`, {
      got: cause,
      cause,
      hint,
    });
  }
}
