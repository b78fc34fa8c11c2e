// Text libraries of the browser, as Python's worker uses them: registered there as the module `fanlight_js`.
//
// In: a tokenizer.json in pieces, or a chat template and its context. Out: ids, or text. Nothing here knows a model.
// The Python side is fanlight/text/encoders.py and fanlight/text/chat_template.py.

import { Tokenizer } from './vendor/tokenizers.mjs';
import { Environment, Interpreter, Template, parse, tokenize } from './vendor/jinja.js';

export { tellCollector } from './buffers.js';

/**
 * An encoder for a tokenizer.json of model type BPE whose `vocab` and `merges` are empty: they follow in pieces, so that
 * the file is never parsed as a whole, which for 49,152 tokens takes 50 MB. Throws where the library refuses it.
 * @param {string} json
 */
export function createTokenizer(json) {
  return new Encoder(json);
}

/** The tokenizer that an encoder's `dump` describes. @param {string} dump */
export function restoreTokenizer(dump) {
  const { head, tokens, merges } = JSON.parse(dump);
  const encoder = new Encoder(head);
  encoder.pushTokens(tokens);
  encoder.pushMerges(merges);
  return encoder;
}

class Encoder {
  /** @param {string} json */
  constructor(json) {
    this.head = json;
    /** @type {any} the library's own types leave the model's fields out */
    this.full = new Tokenizer(JSON.parse(json), {});
    this.plain = withoutControl(this.full);
    this.model = this.full.model;
    const ranks = (this.ranks = new Map());
    // The library's keys are JSON, made anew at each look-up; ours are the merges as the file has them.
    this.model.add_node = (/** @type {any} */ queue, /** @type {any} */ node) => {
      const rank = ranks.get(`${node.token} ${node.next.token}`);
      if (rank === undefined) return;
      node.score = rank + node.bias; // the library's tie break: leftmost first
      queue.push(node);
    };
  }

  /**
   * The next tokens, in the order of their ids.
   * @param {string} json a list of strings
   */
  addTokens(json) {
    this.pushTokens(JSON.parse(json));
  }

  /** @param {string[]} tokens */
  pushTokens(tokens) {
    const { vocab, tokens_to_ids: ids, unk_token: unknown } = this.model;
    for (const token of tokens) {
      ids.set(token, this.tokens);
      vocab[this.tokens++] = token;
    }
    this.model.unk_token_id = ids.get(unknown);
  }

  tokens = 0;

  /**
   * The next merges, best first.
   * @param {string} json a list of strings: the two parts, a space between
   */
  addMerges(json) {
    this.pushMerges(JSON.parse(json));
  }

  /** @param {string[]} merges */
  pushMerges(merges) {
    for (const merge of merges) {
      const rank = this.ranks.size;
      if (!this.ranks.has(merge)) this.ranks.set(merge, rank);
    }
  }

  /** The text of a token. @param {number} id @returns {string} */
  token(id) {
    return this.model.vocab[id];
  }

  /** All of it, for `restoreTokenizer`. */
  dump() {
    return JSON.stringify({ head: this.head, tokens: this.model.vocab, merges: [...this.ranks.keys()] });
  }

  /**
   * Ids of the text with nothing added before or after. Without `parseSpecial`, text that spells a control token stays
   * text.
   * @param {string} text
   * @param {boolean} parseSpecial
   * @returns {Int32Array}
   */
  encode(text, parseSpecial) {
    const { ids } = (parseSpecial ? this.full : this.plain).encode(text, { add_special_tokens: false });
    return Int32Array.from(ids);
  }
}

/**
 * The same tokenizer, sharing everything, but blind to control tokens; the user's own added tokens are still found.
 * The library has no option for it (Rust: `encode_special_tokens`).
 * @param {any} full
 */
function withoutControl(full) {
  const own = full.added_tokens.filter((/** @type {any} */ token) => !token.special);
  const Splitter = full.splitter_unnormalized.constructor;
  return Object.assign(Object.create(full), {
    added_tokens_map: new Map(own.map((/** @type {any} */ token) => [token.content, token])),
    splitter_unnormalized: new Splitter(own.map((/** @type {any} */ token) => token.content)),
  });
}

// The same as in fanlight/text/template_sandbox.py.
const MAX_TEXT = 1 << 22; // characters of the result, or of any text on the way
const MAX_STEPS = 1 << 22; // an expression or statement is one, and so are a list's item and 16 characters of text
const MAX_SECONDS = 5;
const CHARS_PER_STEP = 16;

/**
 * Interprets a template within a budget, and mends where the library silently differs from Jinja: booleans, none, lists
 * and dicts as text, what strip() takes off, the text before a break. One per rendering.
 */
// @ts-expect-error the library declares the methods private that are mended here
class BoundedInterpreter extends Interpreter {
  steps = MAX_STEPS;
  end = performance.now() + MAX_SECONDS * 1000;

  /** @param {number} count */
  spend(count) {
    const before = this.steps;
    this.steps -= count;
    if (this.steps < 0) throw new Error(`chat template takes too many steps (wanted ${MAX_STEPS})`);
    if (this.steps >> 8 !== before >> 8 && performance.now() > this.end) {
      throw new Error(`chat template takes too long (wanted ${MAX_SECONDS} s)`);
    }
  }

  /** @type {Interpreter['evaluate']} */
  evaluate(statement, environment) {
    this.spend(1);
    const result = super.evaluate(statement, environment);
    const { value } = result;
    if (typeof value !== 'string' && !Array.isArray(value)) return result;
    if (value.length > MAX_TEXT) {
      throw new Error(`chat template makes too much text (got ${value.length}, wanted ${MAX_TEXT})`);
    }
    // identifiers and members make nothing new
    if (statement?.type !== 'Identifier' && statement?.type !== 'MemberExpression') {
      this.spend(typeof value === 'string' ? Math.floor(value.length / CHARS_PER_STEP) : value.length);
    }
    return result;
  }

  /** @type {{ body: any[], left: string }[]} the loops that are running; `left`: text of turns cut short */
  loops = [];

  /** @param {any} node @param {Environment} environment */
  evaluateFor(node, environment) {
    const loop = { body: node.body, left: '' };
    this.loops.push(loop);
    // @ts-expect-error private
    const result = super.evaluateFor(node, environment);
    this.loops.pop();
    result.value += loop.left;
    return result;
  }

  /** @param {any[]} statements @param {Environment} environment */
  evaluateBlock(statements, environment) {
    const result = this.text(environment);
    const loop = this.loops.at(-1);
    const turn = loop?.body === statements ? loop : null;
    if (turn) [result.value, turn.left] = [turn.left, ''];
    try {
      for (const statement of statements) {
        const value = this.evaluate(statement, environment);
        if (value.type !== 'NullValue' || PRINTED.has(statement.type)) result.value += show(value);
      }
    } catch (/** @type {any} */ thrown) {
      // break and continue, which lose the text of their turn in the library
      thrown.text = result.value + (thrown.text ?? '');
      if (turn) turn.left = thrown.text;
      throw thrown;
    }
    return result;
  }

  /** @param {any} call @param {Environment} environment */
  evaluateCallExpression(call, environment) {
    const { callee, args } = call;
    if (callee.type === 'MemberExpression' && !callee.computed && args.length === 1) {
      const name = callee.property.value;
      if (name === 'strip' || name === 'lstrip' || name === 'rstrip') {
        const [owner, characters] = [callee.object, args[0]].map((node) => this.evaluate(node, environment));
        if (typeof owner.value === 'string' && typeof characters.value === 'string') {
          return this.text(environment, strip(name, owner.value, characters.value));
        }
      }
    }
    // @ts-expect-error private
    return super.evaluateCallExpression(call, environment);
  }

  /** @param {any} node @param {Environment} environment */
  evaluateBinaryExpression(node, environment) {
    if (node.operator.value === '~') {
      const [left, right] = [node.left, node.right].map((side) => show(this.evaluate(side, environment)));
      return this.text(environment, left + right);
    }
    // @ts-expect-error private
    return super.evaluateBinaryExpression(node, environment);
  }

  /** A text value, whose class is not exported. @param {Environment} environment @param {string} text */
  text(environment, text = '') {
    // @ts-expect-error private
    const result = super.evaluateBlock([], environment);
    result.value = text;
    return result;
  }
}

/** Expressions that print None; other statements give null for nothing. */
const PRINTED = new Set(['Identifier', 'MemberExpression', 'CallExpression', 'FilterExpression', 'Ternary']);

/**
 * Python's str() of a value, or its repr() inside of lists.
 * @param {any} value
 * @param {boolean} [inside]
 * @returns {string}
 */
function show(value, inside = false) {
  switch (value.type) {
    case 'BooleanValue':
      return value.value ? 'True' : 'False';
    case 'NullValue':
      return 'None';
    case 'UndefinedValue':
      return inside ? 'Undefined' : '';
    case 'StringValue':
      return inside ? quoted(value.value) : value.value;
    case 'TupleValue': {
      const items = value.value.map((/** @type {any} */ item) => show(item, true)).join(', ');
      return value.value.length === 1 ? `(${items},)` : `(${items})`;
    }
    case 'ArrayValue':
      return `[${value.value.map((/** @type {any} */ item) => show(item, true)).join(', ')}]`;
    case 'ObjectValue':
      return `{${[...value.value].map(([key, item]) => `${quoted(key)}: ${show(item, true)}`).join(', ')}}`;
    default:
      return value.toString();
  }
}

/** @param {string} text */
function quoted(text) {
  const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
  /** @type {Record<string, string>} */
  const names = { '\n': '\\n', '\r': '\\r', '\t': '\\t', '\\': '\\\\', [quote]: `\\${quote}` };
  return quote + text.replace(/[\0-\x1f\x7f\\'"]/g, (c) => names[c] ?? escaped(c)) + quote;
}

/** @param {string} character */
function escaped(character) {
  if (character === "'" || character === '"') return character;
  return `\\x${character.charCodeAt(0).toString(16).padStart(2, '0')}`;
}

/** @param {string} method @param {string} text @param {string} characters */
function strip(method, text, characters) {
  const set = new Set(characters);
  const all = [...text];
  let [start, end] = [0, all.length];
  while (method !== 'rstrip' && start < end && set.has(all[start])) ++start;
  while (method !== 'lstrip' && end > start && set.has(all[end - 1])) --end;
  return all.slice(start, end).join('');
}

/** @param {number} start @param {number} [stop] @param {number} [step] */
function boundedRange(start, stop, step = 1) {
  if (stop === undefined) [start, stop] = [0, start];
  const length = Math.max(0, Math.ceil((stop - start) / step));
  if (!(length <= 100_000)) throw new Error('range too big (wanted at most 100000)'); // jinja2's own bound
  return Array.from({ length }, (_, i) => start + i * step);
}

/**
 * The text of a chat template. Throws where it can't be parsed, fails, refuses the messages or goes over its budget.
 * What remains: one step may take as long as the library needs for MAX_TEXT characters.
 * @param {string} template
 * @param {string} context JSON: variable → value
 * @returns {string}
 */
export function renderTemplate(template, context) {
  const environment = new Environment();
  const globals = {
    ...{ true: true, True: true, false: false, False: false, none: null, None: null },
    range: boundedRange,
    raise_exception: (/** @type {string} */ message) => {
      throw new Error(`chat template refuses: ${message}`);
    },
    // the library's own, which it does not export
    strftime_now: (/** @type {string} */ form) => new Template('{{ strftime_now(form) }}').render({ form }),
  };
  for (const [name, value] of Object.entries({ ...globals, ...JSON.parse(context) })) environment.set(name, value);
  const program = parse(tokenize(template, { lstrip_blocks: true, trim_blocks: true }));
  return String(new BoundedInterpreter(environment).run(program).value);
}
