// What a model takes and gives: the JavaScript twin of fanlight/inference/signature.py. Dims from
// tensors, and tensors' dims from these.

import { InputError } from './errors.js';
import { evaluate } from './sizes.js';

/** @typedef {import('./sizes.js').Size} Size */
/** @typedef {import('./tensor.js').Tensor | import('./tensor.js').DeviceTensor} Tensor */
/**
 * @typedef {object} TensorInfo
 * @property {string} name
 * @property {string} type element type, e.g. `float32`
 * @property {(number | string)[]} shape numbers, symbols such as `batch`, and formulas of symbols
 */
/** @typedef {TensorInfo & {sizes: Size[], buffer: string | null}} Described `buffer`: the plan's, if it has one */

/**
 * Each symbol's size, from the tensors of all inputs. Throws InputError, naming the input, for one of
 * another element type, rank or size.
 * @param {Described[]} inputs @param {Map<string, number>} maxima @param {Map<string, Tensor>} feeds
 * @returns {Map<string, number>}
 */
export function dimsOfFeeds(inputs, maxima, feeds) {
  /** @type {Map<string, number>} */
  const dims = new Map();
  /** @type {Map<string, string>} symbol → the input that it was seen in */
  const first = new Map();
  for (const info of inputs) {
    const where = `input ${info.name}`;
    const tensor = /** @type {Tensor} */ (feeds.get(info.name));
    const wanted = described(info);
    if (tensor.type !== info.type)
      throw new InputError('wrong element type', { where, got: `${tensor}`, wanted });
    if (tensor.dims.length !== info.sizes.length)
      throw new InputError('wrong number of axes', { where, got: `${tensor}`, wanted });
    info.sizes.forEach((size, axis) => {
      const got = tensor.dims[axis];
      const at = `${where}, axis ${axis}`;
      if (typeof size !== 'string') return;
      const known = dims.get(size);
      const most = maxima.get(size) ?? Infinity;
      if (known !== undefined && known !== got) {
        const need = `${known}, as ${size} is in ${first.get(size)}`;
        throw new InputError('wrong size', { where: at, got, wanted: need });
      }
      if (got > most)
        throw new InputError('too large', { where: at, got, wanted: `at most ${most}` });
      if (known === undefined) first.set(size, info.name);
      dims.set(size, got);
    });
  }
  // Numbers and formulas of symbols, which are all known now.
  for (const { name, sizes, shape } of inputs) {
    sizes.forEach((size, axis) => {
      const got = /** @type {Tensor} */ (feeds.get(name)).dims[axis];
      const need = evaluate(size, dims, maxima);
      if (got === need) return;
      const wanted = typeof size === 'number' ? need : `${need} = ${shape[axis]}`;
      throw new InputError('wrong size', { where: `input ${name}, axis ${axis}`, got, wanted });
    });
  }
  return dims;
}

/** @param {TensorInfo} info */
export function described({ type, shape }) {
  return `${type}[${shape.join(', ')}]`;
}
