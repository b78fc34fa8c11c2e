// Model files that are made, not fetched: random blocks of each dtype, a pattern repeated, so that a
// gigabyte takes a second. Matrices are scaled to keep activations near 1; norms are ones.

const BLOCKS = 4093; // of a pattern; a prime, so that rows differ

/** dtype → bytes of a block, and what writes a block's scales @type {Map<string, [number, (view: DataView, at: number) => void]>} */
const DTYPES = new Map([
  ['f32', [4, (view, at) => view.setFloat32(at, 1, true)]],
  ['q4_0', [18, (view, at) => view.setUint16(at, 0x1c00, true)]], // 2^-8
  [
    'q4_1',
    [
      20,
      (view, at) => {
        view.setUint16(at, 0x1c00, true);
        view.setUint16(at + 2, 0xa780, true); // -7.5 * 2^-8
      },
    ],
  ],
  ['q8_0', [34, (view, at) => view.setUint16(at, 0x0c00, true)]], // 2^-12
]);

export class MadeFile {
  /** @type {Map<string, Uint8Array>} */
  #patterns = new Map();

  /** @param {number} size @param {[number, number, string][]} tensors offset, length, dtype */
  constructor(size, tensors) {
    this.size = size;
    this.tensors = tensors;
  }

  /** Zeros where there is no tensor. @param {number} offset @param {number} length */
  async *stream(offset, length) {
    const end = offset + length;
    for (let at = offset; at < end; ) {
      const next = this.tensors.find(([start, bytes]) => at < start + bytes);
      const [start, bytes, dtype] = next ?? [end, 0, ''];
      if (at < start) {
        yield new Uint8Array(Math.min(start, end) - at);
        at = Math.min(start, end);
        continue;
      }
      const pattern = this.#pattern(dtype);
      const from = (at - start) % pattern.length;
      const count = Math.min(pattern.length - from, start + bytes - at, end - at);
      yield pattern.slice(from, from + count);
      at += count;
    }
  }

  /** @param {string} dtype */
  #pattern(dtype) {
    const known = this.#patterns.get(dtype);
    if (known) return known;
    const [bytes, scale] = /** @type {[number, any]} */ (DTYPES.get(dtype));
    const repeats = Math.ceil((1 << 20) / (BLOCKS * bytes));
    const one = new Uint8Array(BLOCKS * bytes);
    for (let i = 0; i < one.length; i += 65536)
      crypto.getRandomValues(one.subarray(i, Math.min(i + 65536, one.length)));
    const view = new DataView(one.buffer);
    for (let i = 0; i < BLOCKS; i++) scale(view, i * bytes);
    const pattern = new Uint8Array(repeats * one.length);
    for (let i = 0; i < repeats; i++) pattern.set(one, i * one.length);
    this.#patterns.set(dtype, pattern);
    return pattern;
  }
}

/** A file that is one download. */
export class FetchedFile {
  /** @param {Uint8Array} bytes */
  constructor(bytes) {
    this.bytes = bytes;
    this.size = bytes.length;
  }

  /** @param {number} offset @param {number} length */
  async *stream(offset, length) {
    yield this.bytes.slice(offset, offset + length);
  }
}
