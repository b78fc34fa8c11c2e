// Tensors as callers see them: a typed array with dims and an element type. Elements lie in C order;
// those of less than a byte are packed, the first in the lowest bits. No arithmetic.

import { InputError } from './errors.js';

/** @typedef {Float32Array | Float64Array | Int8Array | Uint8Array | Int16Array | Uint16Array | Int32Array | Uint32Array | BigInt64Array | BigUint64Array} TypedArray */
/** @typedef {{new (length: number): TypedArray, new (buffer: ArrayBufferLike, offset?: number, length?: number): TypedArray}} TypedArrayClass */

const Half = /** @type {any} */ (globalThis).Float16Array ?? Uint16Array;

/**
 * Element type → the class of its data and the elements that `bytes` bytes hold. What JavaScript has
 * no numbers for is bytes; float16 is a Uint16Array where the browser has no Float16Array.
 * @type {Map<string, {array: TypedArrayClass, bytes: number, elements: number}>}
 */
export const TYPES = new Map(
  /** @type {[string, any, number, number][]} */ ([
    ['float32', Float32Array, 4, 1],
    ['float16', Half, 2, 1],
    ['float64', Float64Array, 8, 1],
    ['bfloat16', Uint16Array, 2, 1],
    ['int64', BigInt64Array, 8, 1],
    ['int32', Int32Array, 4, 1],
    ['int16', Int16Array, 2, 1],
    ['int8', Int8Array, 1, 1],
    ['uint64', BigUint64Array, 8, 1],
    ['uint32', Uint32Array, 4, 1],
    ['uint16', Uint16Array, 2, 1],
    ['uint8', Uint8Array, 1, 1],
    ['bool', Uint8Array, 1, 1],
    ['int4', Uint8Array, 1, 2],
    ['uint4', Uint8Array, 1, 2],
    ['int2', Uint8Array, 1, 4],
    ['uint2', Uint8Array, 1, 4],
    ['float4_e2m1fn', Uint8Array, 1, 2],
    ['float8_e4m3fn', Uint8Array, 1, 1],
    ['float8_e4m3fnuz', Uint8Array, 1, 1],
    ['float8_e5m2', Uint8Array, 1, 1],
    ['float8_e5m2fnuz', Uint8Array, 1, 1],
    ['float8_e8m0fnu', Uint8Array, 1, 1],
  ]).map(([name, array, bytes, elements]) => [name, { array, bytes, elements }]),
);

export class Tensor {
  /**
   * @param {string} type a key of TYPES
   * @param {TypedArray} data of the type's class; it is not copied
   * @param {readonly number[]} [dims] one axis if left out
   */
  constructor(type, data, dims) {
    const known = TYPES.get(type);
    if (!known) {
      const wanted = [...TYPES.keys()].join(', ');
      throw new InputError('unknown element type', { got: type, wanted });
    }
    if (!(data instanceof known.array)) {
      throw new InputError('data of another class', {
        where: type,
        got: /** @type {any} */ (data)?.constructor?.name ?? typeof data,
        wanted: /** @type {any} */ (known.array).name,
      });
    }
    this.type = type;
    this.data = data;
    this.dims = Object.freeze([...(dims ?? [data.length * known.elements])]);
    const wanted = byteLength(type, this.dims);
    if (wanted !== data.byteLength || !this.dims.every((d) => Number.isInteger(d) && d >= 0)) {
      throw new InputError("the data doesn't fill the dims", {
        where: `${this}`,
        got: `${data.byteLength} bytes`,
        wanted,
      });
    }
  }

  /** The number of elements. */
  get size() {
    return this.dims.reduce((product, d) => product * d, 1);
  }

  toString() {
    return `${this.type}[${this.dims.join(', ')}]`;
  }
}

/** A tensor that stays on the device, for later runs of its session: memory until `dispose`, or until the session
 * goes. */
export class DeviceTensor {
  #executor;

  /**
   * @param {import('./protocol.js').Channel} executor
   * @param {number} session the executor's
   * @param {string} held
   * @param {string} type
   * @param {readonly number[]} dims
   */
  constructor(executor, session, held, type, dims) {
    this.#executor = executor;
    this.session = session;
    this.held = held;
    this.type = type;
    this.dims = dims;
  }

  /** A copy in the page's memory. @returns {Promise<Tensor>} */
  async read() {
    const fields = { session: this.session, buffer: this.held };
    return tensorOf(await this.#executor.request('readBuffer', fields), this.type, this.dims);
  }

  /** Gives its memory back. Safe to call twice. @returns {Promise<void>} */
  async dispose() {
    await this.#executor.request('release', { session: this.session, held: this.held });
  }

  toString() {
    return `${this.type}[${this.dims.join(', ')}] on the device`;
  }
}

/** The tensor in `bytes`, which may be longer and are not copied.
 * @param {Uint8Array<ArrayBuffer>} bytes @param {string} type @param {readonly number[]} dims */
export function tensorOf(bytes, type, dims) {
  const known = TYPES.get(type);
  const each = /** @type {any} */ (known?.array).BYTES_PER_ELEMENT;
  const { array } = /** @type {{array: TypedArrayClass}} */ (known);
  return new Tensor(type, new array(bytes.buffer, bytes.byteOffset, byteLength(type, dims) / each), dims);
}

/** Bytes of a tensor. @param {string} type @param {readonly number[]} dims */
export function byteLength(type, dims) {
  const { bytes, elements } = /** @type {{bytes: number, elements: number}} */ (TYPES.get(type));
  return Math.ceil((dims.reduce((product, d) => product * d, 1) * bytes) / elements);
}

/**
 * A tensor of a caller's value: a Tensor, a typed array, or `{data, dims, type?}`. A class that serves
 * several types is read as `wanted` where it may be.
 * @param {any} value @param {string} wanted @param {string} where
 */
export function asTensor(value, wanted, where) {
  if (value instanceof Tensor) return value;
  const data = ArrayBuffer.isView(value) ? value : value?.data;
  const own = TYPES.get(wanted)?.array;
  const found = own && data instanceof own
    ? wanted
    : [...TYPES].find(([, { array }]) => data instanceof array)?.[0];
  if (!found) {
    throw new InputError('neither a tensor nor a typed array', {
      where,
      got: value === null ? 'null' : (value?.constructor?.name ?? typeof value),
      wanted: 'a Tensor, or {data, dims} with a typed array',
    });
  }
  return new Tensor(value.type ?? found, data, value.dims);
}
