// How many bytes the buffers of a loaded plan have and need: the JavaScript twin of
// fanlight/runtime/sizes.py. In: a plan, and a run's dims. Out: bytes. Where the memory comes from is
// the executor's affair.

import { dimsOf, evaluate } from './sizes.js';

/** @typedef {import('./plan.js').Plan} Plan */
/** @typedef {import('./plan.js').Buffer} Buffer */

export class BufferSizes {
  /** @type {Map<string, number>} of every buffer, those of free size as the last run's dims have them */
  bytes = new Map();

  /** @param {Plan} plan @param {Map<string, number>} [known] dims that are fixed at load (threads) */
  constructor(plan, known = new Map()) {
    this.plan = plan;
    this.known = known;
    const places = new Map([...plan.dims.values()].map(({ name, free }, i) => [name, free ? i : -1]));
    const buffers = [...plan.buffers.values()];
    /** @type {Map<string, number>} buffer of free size → the place of the last free dim in its size */
    this.level = new Map();
    for (const { name, bytes } of buffers) {
      const last = Math.max(-1, ...dimsOf(bytes).map((dim) => places.get(dim) ?? -1));
      if (last >= 0) this.level.set(name, last);
    }
    const level = (/** @type {Buffer} */ { name }) => this.level.get(name) ?? 0;
    /** @type {Buffer[]} those of free size, by level: a dim that changes moves none of a lower level */
    this.free = buffers.filter(({ name }) => this.level.has(name)).sort((a, b) => level(a) - level(b));
    this.#measure(buffers, new Map());
  }

  /** Sets `bytes` for a run with these host dims. @param {Map<string, number>} values */
  update(values) {
    if (this.free.length) this.#measure(this.free, values);
  }

  /** @param {Buffer[]} buffers @param {Map<string, number>} dims */
  #measure(buffers, dims) {
    const { maxima } = this.plan;
    const values = new Map([...dims, ...this.known]);
    for (const { name, free, bound, max } of this.plan.dims.values()) {
      if (bound !== null) values.set(name, clamp(evaluate(bound, values, maxima), max));
      else if (free && !values.has(name)) values.set(name, 0);
    }
    for (const { name, bytes } of buffers)
      this.bytes.set(name, Math.max(0, evaluate(bytes, values, maxima)));
  }
}

/**
 * Bytes to ask for where `have` must become at least `need` and `most` can be had: some more, so that
 * a dim that goes up by one a run doesn't ask each time.
 * @param {number} have @param {number} need @param {number} most
 */
export function grown(have, need, most) {
  return Math.max(need, Math.min(Math.floor((have * 5) / 4), most));
}

/** @param {number} value @param {number} most */
function clamp(value, most) {
  return Math.min(Math.max(value, 0), most);
}
