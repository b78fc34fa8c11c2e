// The bytes of a plan's weights, in chunks cut at units: what both executors feed from. In: the
// plan and its files. Out: chunks in the order of the files, so that a model can load while it is
// downloaded. Weights that lie side by side come from one stream. Knows nothing of devices.

import { PlanError, TruncatedError } from './errors.js';

/** @typedef {import('./plan.js').Plan} Plan */
/** @typedef {import('./plan.js').Weight} Weight */
/**
 * @typedef {{size: number, stream(offset: number, length: number): AsyncIterable<Uint8Array>}} File
 */
/**
 * @typedef {{weight: Weight, index: number, first: number, count: number, bytes: Uint8Array}} Chunk
 * units `[first, first + count)` of a weight; `bytes` is valid until the next chunk is asked for */
/** @typedef {(weight: Weight) => number} Limit the most bytes in one chunk of a weight */

/**
 * Streams are not cut for gaps up to this many bytes: reading over them is cheaper than starting
 * again.
 */
const GAP = 1 << 20;

/** Bytes of all weights together. @param {Plan} plan */
export function weightBytes(plan) {
  return plan.weights.reduce((sum, w) => sum + w.source.length, 0);
}

/**
 * All chunks of all weights. Throws PlanError for a file that is missing or too small.
 * @param {Plan} plan @param {Map<string, File>} files @param {Limit} limit
 * @returns {AsyncGenerator<Chunk, void, void>}
 */
export async function* weightChunks(plan, files, limit) {
  const entries = plan.weights.map((weight, index) => ({ weight, index }));
  for (const entry of entries) {
    const { segment, offset, length } = entry.weight.source;
    if (segment === undefined) continue;
    yield* cut(
      entry,
      new Pieces(once(plan.segments[segment].subarray(offset, offset + length))),
      limit,
    );
  }
  const names = new Set(
    plan.weights.map((w) => w.source.file).filter((name) => name !== undefined),
  );
  for (const name of names) {
    const file = files.get(name);
    if (!file)
      throw new PlanError('a file of the plan was not given', {
        got: name,
        wanted: [...files.keys()],
      });
    const here = entries.filter(({ weight }) => weight.source.file === name);
    here.sort((a, b) => a.weight.source.offset - b.weight.source.offset);
    for (const group of neighbours(here)) {
      const start = group[0].weight.source.offset;
      const last = group[group.length - 1].weight;
      const end = last.source.offset + last.source.length;
      if (end > file.size) {
        throw new PlanError('a weight lies outside its file', {
          where: `weight ${last.name}`,
          got: end,
          wanted: file.size,
          hint: 'The file is not the one compiled.',
        });
      }
      const pieces = new Pieces(file.stream(start, end - start)[Symbol.asyncIterator]());
      try {
        for (const entry of group) {
          await pieces.skip(entry.weight.source.offset - start - pieces.position);
          yield* cut(entry, pieces, limit);
        }
      } finally {
        await pieces.close();
      }
    }
  }
}

/** @typedef {{weight: Weight, index: number}} Entry */

/** Groups that one stream can serve: in order, without overlap. @param {Entry[]} entries */
function neighbours(entries) {
  /** @type {Entry[][]} */
  const groups = [];
  let end = -Infinity;
  for (const entry of entries) {
    const { offset, length } = entry.weight.source;
    if (offset >= end && offset - end <= GAP) groups[groups.length - 1].push(entry);
    else groups.push([entry]);
    end = offset + length;
  }
  return groups;
}

/**
 * The chunks of one weight, whose bytes are the next of `pieces`.
 * @param {Entry} entry
 * @param {Pieces} pieces
 * @param {Limit} limit @returns {AsyncGenerator<Chunk, void, void>} */
async function* cut({ weight, index }, pieces, limit) {
  const { unit, source } = weight;
  const most = Math.floor(limit(weight) / unit) * unit;
  if (most <= 0)
    throw new PlanError('the staging buffer is smaller than a unit', {
      where: `weight ${weight.name}`,
    });
  for (let at = 0; at < source.length;) {
    const size = Math.min(most, source.length - at);
    let bytes = await pieces.next(size);
    const whole = Math.floor(bytes.length / unit) * unit;
    if (whole > 0 && whole < bytes.length) {
      pieces.unread(bytes.length - whole);
      bytes = bytes.subarray(0, whole);
    } else if (whole === 0) {
      // A unit lies across two pieces: this chunk is that one unit.
      const assembled = new Uint8Array(unit);
      assembled.set(bytes);
      for (let filled = bytes.length; filled < unit; filled += bytes.length) {
        bytes = await pieces.next(unit - filled);
        assembled.set(bytes, filled);
      }
      bytes = assembled;
    }
    yield { weight, index, first: at / unit, count: bytes.length / unit, bytes };
    at += bytes.length;
  }
}

/** @param {Uint8Array} bytes @returns {AsyncGenerator<Uint8Array, void, void>} */
async function* once(bytes) {
  yield bytes;
}

/** An iterator of byte arrays, read in other portions. */
class Pieces {
  /** @type {Uint8Array} */
  #rest = new Uint8Array();
  #used = 0;
  position = 0;

  /** @param {AsyncIterator<Uint8Array>} source */
  constructor(source) {
    this.source = source;
  }

  /** At most `most` bytes, at least one. @param {number} most @returns {Promise<Uint8Array>} */
  async next(most) {
    while (this.#used === this.#rest.length) {
      const { done, value } = await this.source.next();
      if (done)
        throw new TruncatedError('the file ended early', {
          where: `byte ${this.position} of a stream`,
        });
      this.#rest = value;
      this.#used = 0;
    }
    const bytes = this.#rest.subarray(this.#used, this.#used + most);
    this.#used += bytes.length;
    this.position += bytes.length;
    return bytes;
  }

  /** Takes back the last `count` bytes of the last `next`. @param {number} count */
  unread(count) {
    this.#used -= count;
    this.position -= count;
  }

  /** @param {number} count */
  async skip(count) {
    while (count > 0) count -= (await this.next(count)).length;
  }

  async close() {
    await this.source.return?.();
  }
}
