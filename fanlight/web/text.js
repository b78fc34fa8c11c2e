// Text libraries of the browser, as Python's worker uses them: registered there as the module `fanlight_js`.
//
// In: a tokenizer.json in pieces, or a chat template and its context. Out: ids, or text. Nothing here knows a model.
// The Python side is fanlight/text/encoders.py and fanlight/text/chat_template.py.

import { Tokenizer } from './vendor/tokenizers.mjs';
import { Environment, Interpreter, parse, tokenize } from './vendor/jinja.js';

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
