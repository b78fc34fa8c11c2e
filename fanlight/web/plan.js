// Reader of the plan's binary form: the JavaScript twin of fanlight/plan.py, whose docstring says
// what everything means. Bytes in, a checked Plan out; PlanError names the place and the rule. No
// eval.

import { PlanError } from './errors.js';
import { array, boolean, natural, object, oneOf, span, string } from './plan_checks.js';
import { checkSize, dimsOf } from './sizes.js';

/** @typedef {import('./sizes.js').Size} Size */
/**
 * @typedef {{name: string, kind: 'host' | 'device', max: number, buffer: string, offset: number, free: boolean, bound: Size | null}} DimSpec
 */
/** @typedef {{name: string, kind: string, bytes: Size, dtype: string, shape: Size[]}} Buffer */
/** @typedef {{file?: string, segment?: number, offset: number, length: number}} Source */
/** @typedef {{name: string, source: Source, unit: number, buffer: string, steps: Step[]}} Weight */
/**
 * @typedef {{name: string, code: string, access: string[], dims: boolean, features: string[]}} Kernel
 */
/**
 * @typedef {{op: 'dispatch', kernel: number, buffers: string[], grid: Size[], args: Size[]}} Dispatch
 */
/**
 * @typedef {{op: 'copy', source: string, target: string, bytes: Size, source_offset: Size, target_offset: Size}} Copy
 */
/** @typedef {{op: 'read', dim: string, buffer: string, offset: number}} Read */
/**
 * @typedef {{op: 'branch', a: Size, compare: string, b: Size, then: Step[], else: Step[]}} Branch
 */
/** @typedef {{op: 'loop', count: Size, body: Step[]}} Loop */
/** @typedef {{op: 'call', program: string}} Call */
/** @typedef {Dispatch | Copy | Read | Branch | Loop | Call} Step */
/**
 * @typedef {{segment: number, threads: boolean, reserved: number, dims_at: number, buffers_at: number, entries: string[], timed: boolean}} WasmModule
 */
/**
 * @typedef {object} Plan
 * @property {'webgpu' | 'wasm'} target
 * @property {string[]} features
 * @property {Map<string, DimSpec>} dims in the plan's order
 * @property {Map<string, number>} maxima
 * @property {Map<string, Buffer>} buffers in the plan's order
 * @property {Weight[]} weights
 * @property {Kernel[]} kernels
 * @property {Map<string, Step[]>} programs
 * @property {Uint8Array[]} segments views into the plan's bytes
 * @property {WasmModule | null} wasm
 */

export const VERSION = 1;
export const STAGING = 'staging';
/** Dims that only the executor sets. */
export const RESERVED_DIMS = ['unit_first', 'unit_count', 'threads'];
/** @type {Map<string, (a: number, b: number) => boolean>} */
export const COMPARISONS = new Map([
  ['==', (a, b) => a === b],
  ['!=', (a, b) => a !== b],
  ['<', (a, b) => a < b],
  ['<=', (a, b) => a <= b],
  ['>', (a, b) => a > b],
  ['>=', (a, b) => a >= b],
]);
const MAGIC = 'FANPLAN1';
const BUFFER_KINDS = ['weight', 'state', 'input', 'output', 'arena', 'staging'];

// --- the file

/** Reads and checks a plan. @param {ArrayBuffer | Uint8Array} data @returns {Plan} */
export function readPlan(data) {
  const bytes = data instanceof Uint8Array ? data : new Uint8Array(data);
  const magic = String.fromCharCode(...bytes.subarray(0, 8));
  if (magic !== MAGIC)
    throw new PlanError('not a plan', { got: JSON.stringify(magic), wanted: MAGIC });
  if (bytes.length < 16)
    throw new PlanError('the plan is cut off in its first 16 bytes', { got: bytes.length });
  const base = 16 + new DataView(bytes.buffer, bytes.byteOffset).getUint32(8, true);
  if (base > bytes.length) {
    throw new PlanError('the plan is cut off in its header', { got: bytes.length, wanted: base });
  }
  let header;
  try {
    header = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes.subarray(16, base)));
  } catch (cause) {
    throw new PlanError("the plan's header is not JSON", { where: 'header', cause });
  }
  const h = object(header, 'header');
  if (h.version !== VERSION) {
    throw new PlanError('unknown plan version', {
      got: h.version,
      wanted: VERSION,
      hint: 'Compile the model again.',
    });
  }
  return new Reader(h, bytes, base).plan();
}

class Reader {
  /**
   * @param {Record<string, any>} h the header
   * @param {Uint8Array} bytes
   * @param {number} base of the segments
   */
  constructor(h, bytes, base) {
    this.h = h;
    this.target = /** @type {'webgpu' | 'wasm'} */ (oneOf(h.target, ['webgpu', 'wasm'], 'target'));
    this.segments = array(h.segments, 'segments').map((place, i) => {
      const [offset, length] = span(place, `segment ${i}`);
      if (!(base + offset + length <= bytes.length)) {
        throw new PlanError('segment outside the file', { where: `segment ${i}` });
      }
      return bytes.subarray(base + offset, base + offset + length);
    });
    /** @type {Map<string, DimSpec>} */
    this.dims = new Map();
    /** @type {Map<string, Buffer>} */
    this.buffers = new Map();
    /** @type {Set<string>} */
    this.freeBuffers = new Set();
    /** @type {Kernel[]} */
    this.kernels = [];
    this.programNames = new Set(Object.keys(object(h.programs, 'programs')));
  }

  /** @returns {Plan} */
  plan() {
    const { h } = this;
    for (const d of array(h.dims, 'dims')) this.#dim(object(d, 'dims'));
    for (const b of array(h.buffers, 'buffers')) this.#buffer(object(b, 'buffers'));
    for (const { name, kind, buffer } of this.dims.values()) {
      const where = `dim ${name}`;
      if (kind === 'device' && !this.buffers.has(buffer))
        throw new PlanError('device dim without its buffer', { where, got: buffer });
      if (kind === 'device' && this.freeBuffers.has(buffer))
        throw new PlanError('a device dim in a buffer of free size', { where });
    }
    /** @type {Uint8Array} */
    let code = new Uint8Array();
    if (h.code_segment !== undefined) {
      code = this.#segment(h.code_segment, 'code_segment');
      this.segments.splice(h.code_segment, 1);
    }
    this.kernels = array(h.kernels, 'kernels').map((k) => this.#kernel(object(k, 'kernels'), code));
    const weights = array(h.weights, 'weights').map((w) => this.#weight(object(w, 'weights')));
    const programs = new Map(
      Object.entries(h.programs).map(([name, steps]) => [
        name,
        this.#steps(steps, `program ${name}`),
      ]),
    );
    const wasm = h.wasm === undefined ? null : this.#wasm(object(h.wasm, 'wasm'));
    if (this.target === 'wasm' && !wasm)
      throw new PlanError('a wasm plan needs its module', { where: 'wasm' });
    object(h.metadata, 'metadata');
    checkCalls(programs);
    return {
      target: this.target,
      features: array(h.features, 'features').map((f) => string(f, 'features')),
      dims: this.dims,
      maxima: new Map([...this.dims.values()].map((d) => [d.name, d.max])),
      buffers: this.buffers,
      weights,
      kernels: this.kernels,
      programs,
      segments: this.segments,
      wasm,
    };
  }

  /** @param {unknown} index @param {string} where */
  #segment(index, where) {
    const segment = this.segments[natural(index, where)];
    if (!segment) throw new PlanError('no such segment', { where, got: index });
    return segment;
  }

  /** @param {Record<string, any>} d */
  #dim(d) {
    const name = string(d.name, 'dims');
    const where = `dim ${name}`;
    const kind = /** @type {'host' | 'device'} */ (oneOf(d.kind, ['host', 'device'], where));
    const [offset, buffer] =
      kind === 'device' ? [natural(d.offset, where), string(d.buffer, where)] : [0, ''];
    const free = boolean(given(d.free, false), where);
    if (free && (kind !== 'host' || RESERVED_DIMS.includes(name)))
      throw new PlanError("only a run's host dim can be free", { where });
    const bound = d.bound === undefined ? null : this.#hostSize(d.bound, where);
    if (bound !== null && !free) throw new PlanError("a bound is a free dim's", { where });
    const max = natural(d.max, where);
    this.dims.set(name, { name, kind, max, buffer, offset, free, bound });
  }

  /** @param {Record<string, any>} b */
  #buffer(b) {
    const name = string(b.name, 'buffers');
    const where = `buffer ${name}`;
    if (this.buffers.has(name))
      throw new PlanError('two buffers of one name', { where: 'buffers', got: name });
    const shape = array(b.shape, where).map((s) => checkSize(s, this.dims, where));
    const kind = oneOf(b.kind, BUFFER_KINDS, where);
    const bytes = checkSize(b.bytes, this.dims, where);
    if (dimsOf(bytes).some((d) => this.dims.get(d)?.free)) {
      if (kind === 'weight' || kind === 'staging')
        throw new PlanError("a weight's size is not free", { where });
      this.freeBuffers.add(name);
    }
    this.buffers.set(name, { name, kind, bytes, dtype: string(b.dtype, where), shape });
  }

  /** @param {Record<string, any>} k @param {Uint8Array} code */
  #kernel(k, code) {
    const name = string(k.name, 'kernels');
    const where = `kernel ${name}`;
    let text = '';
    if (k.code === undefined && this.target === 'webgpu')
      throw new PlanError('a webgpu kernel has code', { where });
    if (k.code !== undefined) {
      const [at, size] = span(k.code, where);
      if (!(at + size <= code.length))
        throw new PlanError('code outside its segment', { where, got: k.code });
      text = new TextDecoder().decode(code.subarray(at, at + size));
    }
    const access = array(given(k.access, []), where).map((a) => oneOf(a, ['read', 'read_write'], where));
    const features = array(given(k.features, []), where).map((f) => string(f, where));
    return { name, code: text, access, dims: boolean(given(k.dims, false), where), features };
  }

  /** @param {Record<string, any>} w @returns {Weight} */
  #weight(w) {
    const where = `weight ${string(w.name, 'weights')}`;
    const s = object(w.source, where);
    const unit = natural(w.unit, where);
    /** @type {Source} */
    const source = { offset: natural(s.offset, where), length: natural(s.length, where) };
    if (unit === 0 || source.length % unit) {
      throw new PlanError('length is not a multiple of the unit', { where, got: source.length });
    }
    if (s.file !== undefined) source.file = string(s.file, where);
    else {
      source.segment = natural(s.segment, where);
      if (source.offset + source.length > this.#segment(s.segment, where).length) {
        throw new PlanError('source outside its segment', { where });
      }
    }
    const buffer = string(given(w.buffer, ''), where);
    const steps = this.#steps(given(w.steps, []), where);
    for (const step of stepsOf(steps)) {
      const used = step.op === 'dispatch' ? step.buffers : [];
      if (step.op === 'copy') used.push(step.source, step.target);
      if (used.some((name) => this.freeBuffers.has(name)))
        throw new PlanError("a weight's steps use a buffer of free size", { where });
    }
    if (!steps.length && !this.buffers.has(buffer)) {
      throw new PlanError('neither steps nor a buffer', { where, got: buffer });
    }
    if (!steps.length && this.target === 'webgpu' && unit % 4) {
      throw new PlanError('unit of a direct write must be a multiple of 4', { where });
    }
    return { name: w.name, source, unit, buffer, steps };
  }

  /** @param {Record<string, any>} m @returns {WasmModule} */
  #wasm(m) {
    this.#segment(m.segment, 'wasm');
    return {
      segment: m.segment,
      threads: boolean(m.threads, 'wasm'),
      reserved: natural(m.reserved, 'wasm'),
      dims_at: natural(m.dims_at, 'wasm'),
      buffers_at: natural(m.buffers_at, 'wasm'),
      entries: array(m.entries, 'wasm').map((e) => string(e, 'wasm')),
      timed: boolean(m.timed, 'wasm'),
    };
  }

  /** @param {unknown} list @param {string} where @returns {Step[]} */
  #steps(list, where) {
    return array(list, where).map((s, i) => this.#step(object(s, where), `${where}, step ${i}`));
  }

  /** @param {Record<string, any>} s @param {string} where @returns {Step} */
  #step(s, where) {
    const size = (/** @type {unknown} */ value) => checkSize(value, this.dims, where);
    switch (s.op) {
      case 'dispatch': {
        const grid = array(given(s.grid, [1, 1, 1]), where).map(size);
        if (grid.length !== 3)
          throw new PlanError('a grid has three sizes', { where, got: grid.length });
        const buffers = array(s.buffers, where).map((b) => this.#bufferName(b, where));
        const step = /** @type {Dispatch} */ ({
          op: 'dispatch',
          kernel: s.kernel,
          buffers,
          grid,
          args: array(given(s.args, []), where).map(size),
        });
        this.#checkDispatch(step, where);
        return step;
      }
      case 'copy': {
        const source = this.#bufferName(s.source, where);
        const target = this.#bufferName(s.target, where);
        if (source === target && this.target === 'webgpu') {
          throw new PlanError('copy inside one buffer', { where, got: source });
        }
        const [bytes, source_offset, target_offset] = [
          s.bytes,
          s.source_offset,
          s.target_offset,
        ].map(size);
        return { op: 'copy', source, target, bytes, source_offset, target_offset };
      }
      case 'read': {
        if (this.dims.get(s.dim)?.kind !== 'host') {
          throw new PlanError('read into something not a host dim', { where, got: s.dim });
        }
        if (this.dims.get(s.dim)?.free && this.dims.get(s.dim)?.bound === null) {
          throw new PlanError('a free dim that is read has a bound', { where, got: s.dim });
        }
        return {
          op: 'read',
          dim: s.dim,
          buffer: this.#bufferName(s.buffer, where),
          offset: natural(s.offset, where),
        };
      }
      case 'branch': {
        const compare = oneOf(s.compare, [...COMPARISONS.keys()], where);
        const [a, b] = [s.a, s.b].map((value) => this.#hostSize(value, where));
        const then = this.#steps(s.then, `${where} then`);
        return { op: 'branch', a, compare, b, then, else: this.#steps(s.else, `${where} else`) };
      }
      case 'loop':
        return {
          op: 'loop',
          count: this.#hostSize(s.count, where),
          body: this.#steps(s.body, where),
        };
      case 'call':
        if (!this.programNames.has(s.program))
          throw new PlanError('no such program', { where, got: s.program });
        return { op: 'call', program: s.program };
      default:
        throw new PlanError('unknown step', { where, got: JSON.stringify(s.op) });
    }
  }

  /** @param {unknown} name @param {string} where */
  #bufferName(name, where) {
    if (typeof name === 'string' && this.buffers.has(name)) return name;
    throw new PlanError('no such buffer', { where, got: JSON.stringify(name) });
  }

  /** A size that control flow may depend on. @param {unknown} value @param {string} where */
  #hostSize(value, where) {
    const size = checkSize(value, this.dims, where);
    if (dimsOf(size).some((d) => this.dims.get(d)?.kind === 'device')) {
      throw new PlanError('control flow on a device dim', { where, hint: 'Read it back first.' });
    }
    return size;
  }

  /** @param {Dispatch} step @param {string} where */
  #checkDispatch({ kernel, buffers }, where) {
    const entry = this.kernels[natural(kernel, where)];
    if (!entry) throw new PlanError('no such kernel', { where, got: kernel });
    if (this.target !== 'webgpu') return;
    if (buffers.length !== entry.access.length) {
      throw new PlanError('wrong number of buffers', {
        where,
        got: buffers.length,
        wanted: entry.access.length,
      });
    }
    const written = buffers.filter((_, i) => entry.access[i] === 'read_write');
    if (written.some((b) => buffers.indexOf(b) !== buffers.lastIndexOf(b))) {
      throw new PlanError('a written buffer is bound twice', { where, got: written.join(', ') });
    }
  }
}

/** A value that may be left out. @template T @param {unknown} value @param {T} otherwise */
function given(value, otherwise) {
  return value === undefined ? otherwise : value;
}

/** All steps, nested ones included. @param {Step[]} steps @returns {Generator<Step, void, void>} */
export function* stepsOf(steps) {
  for (const step of steps) {
    yield step;
    if (step.op === 'branch') {
      yield* stepsOf(step.then);
      yield* stepsOf(step.else);
    } else if (step.op === 'loop') yield* stepsOf(step.body);
  }
}

/** No program may call itself, not even through others. @param {Map<string, Step[]>} programs */
function checkCalls(programs) {
  /** @type {Map<string, 'open' | 'done'>} */
  const state = new Map();
  const visit = (/** @type {string} */ name) => {
    if (state.get(name) === 'open')
      throw new PlanError('a program calls itself', { where: `program ${name}` });
    if (state.has(name)) return;
    state.set(name, 'open');
    for (const step of stepsOf(programs.get(name) ?? []))
      if (step.op === 'call') visit(step.program);
    state.set(name, 'done');
  };
  for (const name of programs.keys()) visit(name);
}
