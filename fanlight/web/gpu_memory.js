// Which buffers of a webgpu plan share one GPU buffer. Drivers and Dawn round each allocation up, to
// powers of two below some megabytes, so hundreds of buffers waste a good part of the memory; packed
// at multiples of 256 they don't. Buffers that a dispatch reads and writes at a time must stay apart:
// WebGPU tracks uses by whole buffers. Knows nothing of models.

import { stepsOf } from './plan.js';

/** @typedef {import('./plan.js').Plan} Plan */
/** @typedef {{names: string[], offsets: number[], bytes: number}} Pack */

/** Offsets of bindings are multiples of this (WebGPU's default minStorageBufferOffsetAlignment). */
const ALIGN = 256;
/** The largest pack, but for a buffer that is larger by itself. */
const MOST = 128 << 20;

/** The bytes that a binding of a buffer covers. @param {number} bytes */
export function boundBytes(bytes) {
  return Math.max(16, Math.ceil(bytes / 4) * 4);
}

/**
 * Packs for all buffers, each in the first pack that takes it, in the plan's order.
 * @param {Plan} plan
 * @param {Map<string, number>} sizes buffer → bytes
 * @returns {Pack[]}
 */
export function packs(plan, sizes) {
  const apart = conflicts(plan);
  /** @type {(Pack & {members: Set<string>})[]} */
  const made = [];
  for (const [name, size] of sizes) {
    const bytes = boundBytes(size);
    const foes = [...(apart.get(name) ?? [])];
    let pack = made.find(
      ({ members, bytes: used }) =>
        align(used) + bytes <= MOST && !foes.some((foe) => members.has(foe)),
    );
    if (!pack) made.push((pack = { names: [], offsets: [], bytes: 0, members: new Set() }));
    const offset = align(pack.bytes);
    pack.names.push(name);
    pack.offsets.push(offset);
    pack.members.add(name);
    pack.bytes = offset + bytes;
  }
  return made;
}

/** @param {number} bytes */
function align(bytes) {
  return Math.ceil(bytes / ALIGN) * ALIGN;
}

/** Buffer → those that a step reads while it writes this one, or the other way round. @param {Plan} plan */
function conflicts(plan) {
  /** @type {Map<string, Set<string>>} */
  const apart = new Map();
  const part = (/** @type {string} */ a, /** @type {string} */ b) => {
    for (const [one, other] of [
      [a, b],
      [b, a],
    ]) {
      const foes = apart.get(one) ?? new Set();
      apart.set(one, foes.add(other));
    }
  };
  const lists = [...plan.programs.values(), ...plan.weights.map((w) => w.steps)];
  for (const step of lists.flatMap((steps) => [...stepsOf(steps)])) {
    if (step.op === 'copy') part(step.source, step.target);
    if (step.op !== 'dispatch') continue;
    const { access } = plan.kernels[step.kernel];
    step.buffers.forEach((written, i) => {
      if (access[i] !== 'read_write') return;
      step.buffers.forEach((read, j) => access[j] === 'read' && part(written, read));
    });
  }
  return apart;
}
