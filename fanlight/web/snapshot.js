// The form in which a snapshot of Python's memory is kept: half of it is zeros, which are left out. In: bytes. Out:
// bytes. Knows nothing of Python.
//
//   u32 magic, u32 length of the memory, then for each run of pages that are not zero: u32 first page, u32 pages;
//   0xffffffff, 0; then the runs' bytes. Little-endian.

import { FormatError } from './errors.js';

const MAGIC = 0x31504e53;
const PAGE = 4096;
const END = 0xffffffff;

/** @param {Uint8Array} memory its length a multiple of 4 @returns {Uint8Array<ArrayBuffer>} */
export function pack(memory) {
  const words = new Uint32Array(memory.buffer, memory.byteOffset, memory.length / 4);
  /** @type {{first: number, count: number}[]} */
  const runs = [];
  for (let page = 0; page * PAGE < memory.length; page++) {
    if (words.subarray((page * PAGE) / 4, ((page + 1) * PAGE) / 4).every((word) => word === 0)) continue;
    const last = runs.at(-1);
    if (last && last.first + last.count === page) last.count += 1;
    else runs.push({ first: page, count: 1 });
  }
  const head = Uint32Array.of(MAGIC, memory.length, ...runs.flatMap(({ first, count }) => [first, count]), END, 0);
  const parts = runs.map(({ first, count }) => memory.subarray(first * PAGE, (first + count) * PAGE));
  const packed = new Uint8Array(parts.reduce((sum, part) => sum + part.length, head.byteLength));
  packed.set(new Uint8Array(head.buffer));
  let at = head.byteLength;
  for (const part of parts) {
    packed.set(part, at);
    at += part.length;
  }
  return packed;
}

/** Throws FormatError. @param {ArrayBuffer} packed @returns {Uint8Array<ArrayBuffer>} */
export function unpack(packed) {
  const view = new DataView(packed);
  if (packed.byteLength < 16 || view.getUint32(0, true) !== MAGIC) throw new FormatError('not a snapshot');
  const memory = new Uint8Array(view.getUint32(4, true));
  /** @type {[number, number][]} bytes: start, end */
  const runs = [];
  let at = 8;
  for (; at + 8 <= packed.byteLength && view.getUint32(at, true) !== END; at += 8) {
    const start = view.getUint32(at, true) * PAGE;
    runs.push([start, Math.min(memory.length, start + view.getUint32(at + 4, true) * PAGE)]);
  }
  at += 8;
  for (const [start, end] of runs) {
    if (at + end - start > packed.byteLength) throw new FormatError('the snapshot is cut off');
    memory.set(new Uint8Array(packed, at, end - start), start);
    at += end - start;
  }
  return memory;
}
