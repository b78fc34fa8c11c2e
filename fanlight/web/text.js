// Text libraries of the browser, as Python's worker uses them: registered there as the module `fanlight_js`.
//
// In: a tokenizer.json in pieces, or a chat template and its context. Out: ids, or text. Nothing here knows a model.
// The Python side is fanlight/text/encoders.py and fanlight/text/chat_template.py.

import { Tokenizer } from './vendor/tokenizers.mjs';
import { Environment, Interpreter, Template, parse, tokenize } from './vendor/jinja.js';

/**
 * An encoder for a tokenizer.json of model type BPE whose `vocab` and `merges` are empty: they follow in pieces, so that
 * the file is never parsed as a whole, which for 49,152 tokens takes 50 MB. Throws where the library refuses it.
 * @param {string} json
 */
export function createTokenizer(json) {
  return new Encoder(json);
}

class Encoder {
  /** @param {string} json */
  constructor(json) {
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
    const { vocab, tokens_to_ids: ids, unk_token: unknown } = this.model;
    for (const token of JSON.parse(json)) {
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
    for (const merge of JSON.parse(json)) {
      const rank = this.ranks.size;
      if (!this.ranks.has(merge)) this.ranks.set(merge, rank);
    }
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

/** Interprets a template within a budget. One per rendering. */
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
