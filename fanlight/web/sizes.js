// Sizes: the JavaScript half of fanlight/shapes.py. An int is itself, a string is a dim, [op, a, b]
// an operation.

import { PlanError } from './errors.js';

/** @typedef {number | string | [string, any, any]} Size */

/** @type {Map<string, (a: number, b: number) => number>} */
const OPS = new Map([
  ['+', (a, b) => a + b],
  ['-', (a, b) => a - b],
  ['*', (a, b) => a * b],
  ['//', (a, b) => Math.floor(a / b)],
  ['ceil/', (a, b) => Math.ceil(a / b)],
  ['%', (a, b) => a - b * Math.floor(a / b)],
  ['max', Math.max],
  ['min', Math.min],
]);

/**
 * The value of `size`; a dim that `values` lacks takes its maximum.
 * @param {Size} size @param {Map<string, number>} values @param {Map<string, number>} maxima
 * @returns {number}
 */
export function evaluate(size, values, maxima) {
  if (typeof size === 'number') return size;
  if (typeof size === 'string') {
    const value = values.get(size) ?? maxima.get(size);
    if (value === undefined) throw new PlanError('unknown dim in a size', { got: size });
    return value;
  }
  const a = evaluate(size[1], values, maxima);
  const b = evaluate(size[2], values, maxima);
  const result = /** @type {(a: number, b: number) => number} */ (OPS.get(size[0]))(a, b);
  if (!Number.isSafeInteger(result)) {
    throw new PlanError('a size is not a whole number', {
      got: `${JSON.stringify(size)} = ${result}`,
    });
  }
  return result;
}

/**
 * `value` if it is a size over `dims`; throws PlanError for anything else.
 * @param {unknown} value @param {Map<string, unknown>} dims @param {string} where @returns {Size}
 */
export function checkSize(value, dims, where) {
  if (Number.isSafeInteger(value)) return /** @type {number} */ (value);
  if (typeof value === 'string' && dims.has(value)) return value;
  if (Array.isArray(value) && value.length === 3 && OPS.has(value[0])) {
    if (['//', 'ceil/', '%'].includes(value[0]) && value[2] === 0) {
      throw new PlanError('division by zero in a size', { where, got: JSON.stringify(value) });
    }
    return [value[0], checkSize(value[1], dims, where), checkSize(value[2], dims, where)];
  }
  throw new PlanError('not a size expression', {
    where,
    got: JSON.stringify(value),
    wanted: 'int, dim or [op, a, b]',
  });
}

/** Every dim in `size`, with repeats. @param {Size} size @returns {string[]} */
export function dimsOf(size) {
  if (typeof size === 'number') return [];
  if (typeof size === 'string') return [size];
  return [...dimsOf(size[1]), ...dimsOf(size[2])];
}
