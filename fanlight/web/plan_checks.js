// Checks of the values in a plan's header: each returns its value or throws, naming the place.

import { PlanError } from './errors.js';

/** @param {unknown} value @param {string} where @returns {Record<string, any>} */
export function object(value, where) {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value;
  throw new PlanError('malformed header', {
    where,
    got: JSON.stringify(value),
    wanted: 'an object',
  });
}

/** @param {unknown} value @param {string} where @returns {any[]} */
export function array(value, where) {
  if (Array.isArray(value)) return value;
  throw new PlanError('malformed header', { where, got: JSON.stringify(value), wanted: 'a list' });
}

/** @param {unknown} value @param {string} where @returns {string} */
export function string(value, where) {
  if (typeof value === 'string') return value;
  throw new PlanError('malformed header', {
    where,
    got: JSON.stringify(value),
    wanted: 'a string',
  });
}

/** @param {unknown} value @param {string} where @returns {boolean} */
export function boolean(value, where) {
  if (typeof value === 'boolean') return value;
  throw new PlanError('malformed header', {
    where,
    got: JSON.stringify(value),
    wanted: 'true or false',
  });
}

/** A whole number, at least 0. @param {unknown} value @param {string} where @returns {number} */
export function natural(value, where) {
  if (Number.isSafeInteger(value) && /** @type {number} */ (value) >= 0)
    return /** @type {number} */ (value);
  throw new PlanError('malformed header', {
    where,
    got: JSON.stringify(value),
    wanted: 'a whole number',
  });
}

/** [offset, length] @param {unknown} value @param {string} where @returns {[number, number]} */
export function span(value, where) {
  const [offset, length, ...more] = array(value, where).map((n) => natural(n, where));
  if (length !== undefined && !more.length) return [offset, length];
  const got = JSON.stringify(value);
  throw new PlanError('not a pair of offset and length', { where, got });
}

/**
 * @param {unknown} value
 * @param {readonly string[]} options
 * @param {string} where
 * @returns {string}
 */
export function oneOf(value, options, where) {
  if (typeof value === 'string' && options.includes(value)) return value;
  throw new PlanError('unknown value', {
    where,
    got: JSON.stringify(value),
    wanted: options.join(' or '),
  });
}
