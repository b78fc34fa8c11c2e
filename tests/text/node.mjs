// Runs fanlight/web/text.js in Node for the tests: one JSON request on stdin, one JSON answer on stdout.
// @ts-nocheck: Node's own types are not installed

import { createTokenizer, renderTemplate } from '../../fanlight/web/text.js';
import { readFileSync } from 'node:fs';

/** @type {Record<string, (request: any) => unknown>} */
const COMMANDS = {
  /** @param {{head: string, tokens: string[], merges: string[], texts: string[]}} request */
  encode({ head, tokens, merges, texts }) {
    const tokenizer = createTokenizer(head);
    for (const piece of tokens) tokenizer.addTokens(piece);
    for (const piece of merges) tokenizer.addMerges(piece);
    const all = (/** @type {boolean} */ special) => texts.map((text) => [...tokenizer.encode(text, special)]);
    return { ids: all(true), plain_ids: all(false) };
  },
  /** @param {{templates: [string, string][]}} request */
  render({ templates }) {
    return templates.map(([template, context]) => {
      try {
        return { text: renderTemplate(template, context) };
      } catch (error) {
        return { error: error instanceof Error ? error.message : String(error) };
      }
    });
  },
};

const request = JSON.parse(readFileSync(0, 'utf8'));
process.stdout.write(JSON.stringify(COMMANDS[request.command](request)));
