// The errors of the JavaScript side: the names of fanlight/errors.py, and the form in which they
// cross a worker's boundary. A message says what happened, where, what was found, and what to do
// next.

/**
 * @typedef {{where?: string, got?: unknown, wanted?: unknown, hint?: string, cause?: unknown}} Details
 */
/**
 * @typedef {{code: string, message: string, what: string, where: string, hint: string}} ErrorMessage
 */

/** Base of all errors below. `code` is the class's name: it crosses boundaries as a string. */
export class FanlightError extends Error {
  /** @param {string} what one sentence @param {Details} [details] */
  constructor(what, { where = '', got, wanted, hint = '', cause } = {}) {
    let text = where ? `${where}: ${what}` : what;
    if (got !== undefined && wanted !== undefined) text += ` (got ${got}, wanted ${wanted})`;
    else if (got !== undefined) text += ` (got ${got})`;
    else if (wanted !== undefined) text += ` (wanted ${wanted})`;
    if (hint) text += text.endsWith('.') ? ` ${hint}` : `. ${hint}`;
    super(text, cause === undefined ? undefined : { cause });
    this.what = what;
    this.where = where;
    this.hint = hint;
    this.code = new.target.code;
    this.name = this.code;
  }

  static code = 'FanlightError';
}

/** A model file is malformed. */
export class FormatError extends FanlightError {
  static code = 'FormatError';
}

/** A file ends before the data that it announces. */
export class TruncatedError extends FormatError {
  static code = 'TruncatedError';
}

/** The input is valid, but this version can't run it. */
export class UnsupportedError extends FanlightError {
  static code = 'UnsupportedError';
}

/** A graph breaks a rule of the IR. */
export class GraphError extends FanlightError {
  static code = 'GraphError';
}

/** A plan is malformed or doesn't fit its executor. */
export class PlanError extends FanlightError {
  static code = 'PlanError';
}

/** The device can't be had, was lost, or ran out of memory. */
export class DeviceError extends FanlightError {
  static code = 'DeviceError';
}

/** Model bytes can't be had: not found, network lost, disk full. */
export class StoreError extends FanlightError {
  static code = 'StoreError';
}

/** The caller aborted the work. Nothing is left half-done. */
export class AbortedError extends FanlightError {
  static code = 'AbortedError';
}

/** A chat template failed to parse or to render. */
export class TemplateError extends FanlightError {
  static code = 'TemplateError';
}

/** An argument of a public call is out of range or of the wrong type. */
export class InputError extends FanlightError {
  static code = 'InputError';
}

/** An optional package is needed for this call. */
export class MissingDependencyError extends FanlightError {
  static code = 'MissingDependencyError';
}

/** The sync form can't block here. */
export class SyncUnavailableError extends FanlightError {
  static code = 'SyncUnavailableError';
}

const CLASSES = [
  FanlightError,
  FormatError,
  TruncatedError,
  UnsupportedError,
  GraphError,
  PlanError,
  DeviceError,
  StoreError,
  AbortedError,
  TemplateError,
  InputError,
  MissingDependencyError,
  SyncUnavailableError,
];
/** @type {Map<string, typeof FanlightError>} */
export const BY_CODE = new Map(CLASSES.map((type) => [type.code, type]));

/**
 * The plain object that stands for `error` in a message.
 * @param {unknown} error
 * @returns {ErrorMessage}
 */
export function toMessage(error) {
  if (error instanceof FanlightError) {
    const { code, message, what, where, hint } = error;
    return { code, message, what, where, hint };
  }
  const name = error instanceof Error || error instanceof DOMException ? error.name : '';
  const text = error instanceof Error ? error.message : String(error);
  if (name === 'AbortError') return toMessage(new AbortedError('aborted'));
  const message = name ? `${name}: ${text}` : text;
  return { code: 'FanlightError', message, what: message, where: '', hint: '' };
}

/** The error that a message stands for. @param {ErrorMessage} object @returns {FanlightError} */
export function fromMessage(object) {
  const type = BY_CODE.get(object.code) ?? FanlightError;
  const error = new type(object.what, { where: object.where, hint: object.hint });
  error.message = object.message;
  error.code = object.code;
  return error;
}

/** Throws AbortedError where `signal` is aborted. @param {AbortSignal} [signal] */
export function throwIfAborted(signal) {
  if (signal?.aborted) throw new AbortedError('aborted', { cause: signal.reason });
}
