// The page: load a model, talk to it. Only fanlight.js is used, as any other page would. A reload goes on with the
// conversation, and with the model where it is kept here.
//
// Address:  ?model=URL&device=auto|webgpu|wasm  fill the form. With &auto=1 the model is loaded at once and, with
// &prompt=…, asked; &max_new_tokens=, &context= and &relaxed_simd=1 are handed on. With &rest=SECONDS Python
// boots first and the page rests, for measurements. The title says how far it is; with &report=1 it ends as `Report`
// and the first answer's numbers, once the page is kept for visits without network.
//
// For measurements `window.fanlightReport` is a promise of the first answer's numbers; it never rejects:
//   {prompt, model, backend, adapter, threads, isolated, reply, tokens (how many), prompt_tokens, finish_reason,
//    ready_ms        navigation → weights resident, pipelines made, prompt tokenised (sensible with auto=1 only)
//    done_ms         navigation → end of the answer
//    first_token_ms  prompt tokenised → first token; prefill_ms, prefill_tok_s, decode_tok_s
//    longest_task_ms of the page's thread from ready to done; 0 where all are below 50
//    python_ms       start of Python's worker → fanlight imported
//    header_ms, compile_ms (graph → plan), tokenizer_ms, pipelines_ms (the device's compiler), upload_ms, load_ms
//    open_ms, download_ms, network_bytes, cache_bytes, requests        of the model's file
//    resident_bytes}                                                   what the plan holds on the device
// or {error: {code, message, what, where, hint}}. `performance` has the marks fanlight:start, fanlight:loaded,
// fanlight:ready, fanlight:first-piece, fanlight:done; a dispatched `fanlight:piece` event holds each piece.
// `window.fanlightKept` is a promise: the page is kept for visits without network.

import { forget, remember, remembered } from './app_memory.js';
import { isKept, listModels } from './app_models.js';
import { Stages, megabytes } from './app_stages.js';
import { AbortedError, FanlightError, kept, pipeline, start } from './fanlight.js';
import { isolate, keepApp } from './offline.js';

/** @typedef {import('./fanlight.js').Generator} Generator */
/** @typedef {import('./fanlight.js').Generation} Generation */
/** @typedef {import('./fanlight.js').Progress} Progress */

/** @template {HTMLElement} T @param {string} id @param {new () => T} type @returns {T} */
function element(id, type) {
  const found = document.getElementById(id);
  if (!(found instanceof type)) throw new Error(`the page lacks #${id}`);
  return found;
}
const sections = ['chooser', 'loading', 'error', 'chat'].map((id) => element(id, HTMLElement));
const modelInput = element('model', HTMLInputElement);
const deviceInput = element('device', HTMLSelectElement);
const fileInput = element('file', HTMLInputElement);
const modelList = element('models', HTMLElement);
const stages = new Stages(element('stages', HTMLElement));
const promptInput = element('prompt', HTMLTextAreaElement);
const log = element('log', HTMLElement);
const status = element('status', HTMLElement);
const sendButton = element('send', HTMLButtonElement);
const stopButton = element('stop', HTMLButtonElement);

/** From a loaded model, with the first answer perhaps under way, to keeping the page for visits without network. */
const KEEP_AFTER_MS = 1000;
const query = new URLSearchParams(location.search);
/** @type {Generator | null} */
let generator = null;
/** @type {AbortController | null} */
let loading = null;
/** @type {Generation | null} */
let answering = null;
/** @type {{role: string, content: string}[]} */
let messages = [];
/** The URL of the model in use; '' for a picked file. */
let address = '';
/** Whether the address says all, so that nothing is remembered. */
const scripted = query.get('auto') === '1';
/** What `Try again` does. @type {() => void} */
let again = () => {};
/** @type {PerformanceEntry[]} */
const longTasks = [];
const taskObserver = globalThis.PerformanceObserver?.supportedEntryTypes?.includes('longtask')
  ? new PerformanceObserver((list) => void longTasks.push(...list.getEntries()))
  : null;
taskObserver?.observe({ type: 'longtask', buffered: true });
/** @type {(report: object) => void} */
let report = () => {};
/** @type {any} */ (window).fanlightReport = new Promise((resolve) => {
  report = resolve;
});

/** @param {string} [state] */
function title(state) {
  document.title = state ? `${state} – Fanlight` : 'Fanlight';
}

/** Shows these sections and hides the others. @param {...string} ids */
function show(...ids) {
  for (const section of sections) section.hidden = !ids.includes(section.id);
}

// --- loading

/** @param {string | File} model */
async function load(model) {
  const control = (loading = new AbortController());
  stages.reset();
  show('loading');
  status.textContent = '';
  performance.mark('fanlight:start');
  title('Loading');
  const started = performance.now();
  try {
    generator = await pipeline('text-generation', model, {
      device: /** @type {any} */ (deviceInput.value), signal: control.signal, progress, ...options(),
    });
  } catch (error) {
    if (error instanceof AbortedError) {
      title();
      return choose();
    }
    again = () => void load(model);
    return fail(error, 'chooser');
  } finally {
    loading = null;
  }
  performance.mark('fanlight:loaded');
  title('Ready');
  const { info } = generator;
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  const place = info.backend === 'webgpu' ? `WebGPU (${info.adapter})` : `WebAssembly, ${info.adapter}`;
  summary(`${info.model} · ${place} · ${megabytes(info.resident_bytes)} of memory`);
  const slow = info.backend === 'wasm' && !info.isolated;
  status.textContent = `Loaded in ${seconds} s.` + (slow
    ? ' One thread only: this page is not cross-origin isolated. The server can change that with the headers'
      + ' Cross-Origin-Opener-Policy: same-origin and Cross-Origin-Embedder-Policy: require-corp.'
    : '');
  address = typeof model === 'string' ? new URL(model, document.baseURI).href : '';
  save();
  show('chat');
  scrollDown();
  promptInput.focus();
}

/** @param {Progress} news */
function progress(news) {
  if (news.stage === 'warning') status.textContent = news.message ?? '';
  stages.show(news);
}

/** Says what is in use; adds what the whole page takes, where the browser tells. @param {string} text */
function summary(text) {
  const place = element('summary', HTMLElement);
  place.textContent = text;
  if (!globalThis.crossOriginIsolated) return;
  const measured = /** @type {any} */ (performance).measureUserAgentSpecificMemory?.();
  measured?.then((/** @type {{bytes: number}} */ { bytes }) => {
    if (place.textContent === text) place.textContent = `${text}, the page itself ${megabytes(bytes)}`;
  }).catch(() => {});
}

/** Gives the model's memory back, and ends its answer. */
function leave() {
  answering?.abort();
  void generator?.dispose().catch((error) => fail(error, 'chooser'));
  generator = null;
}

function choose() {
  show('chooser');
  void listModels(modelList, (url) => {
    modelInput.value = url;
    void load(url);
  });
}

function save() {
  if (!scripted) remember({ model: address, device: deviceInput.value, messages });
}

/** What the address says beside the form. */
function options() {
  /** @type {import('./fanlight.js').PipelineOptions} */
  const found = {};
  if (query.has('context')) found.context = Number(query.get('context'));
  if (query.has('relaxed_simd')) found.relaxed_simd = query.get('relaxed_simd') === '1';
  return found;
}

// --- errors

/** Shows what happened and what to do, above `place`. @param {unknown} error @param {string} place */
function fail(error, place) {
  const { code, message, what, where, hint } = error instanceof FanlightError
    ? error
    : { code: 'FanlightError', message: String(error), what: 'something in the page failed', where: '', hint: '' };
  title('Error');
  element('error-title', HTMLElement).textContent = sentence(what);
  const rest = hint ? message.replace(hint, '').trim() : message;
  element('error-detail', HTMLElement).textContent = `${code}: ${rest}`;
  element('error-hint', HTMLElement).textContent = sentence(hint || 'Reload the page and try again.');
  show('error', place);
  element('retry', HTMLButtonElement).focus();
  report({ error: { code, message, what, where, hint } });
}

/** @param {string} text */
function sentence(text) {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}

// --- answers

/** @param {string} prompt */
async function ask(prompt) {
  if (!generator || answering) return;
  show('chat');
  again = () => void ask(prompt);
  const asked = { role: 'user', content: prompt };
  const question = addTurn('user', prompt);
  const turn = addTurn('assistant busy', '');
  log.setAttribute('aria-busy', 'true'); // read aloud when it is whole
  const numbers = document.createElement('p');
  numbers.className = 'numbers';
  log.append(numbers);
  const times = { ready: 0, first: 0 };
  const progress = (/** @type {Progress} */ { total }) => {
    performance.mark('fanlight:ready');
    times.ready = performance.now();
    numbers.textContent = `Reading ${total} tokens…`;
  };
  const limit = Number(query.get('max_new_tokens') ?? 512);
  const current = (answering = generator([...messages, asked], { max_new_tokens: limit, progress }));
  busy(true);
  try {
    let pieces = 0;
    for await (const piece of current) {
      if (!pieces++) {
        performance.mark('fanlight:first-piece');
        times.first = performance.now();
      }
      turn.append(piece);
      window.dispatchEvent(new CustomEvent('fanlight:piece', { detail: piece }));
      const rate = (pieces - 1) / Math.max(1e-3, (performance.now() - times.first) / 1000);
      numbers.textContent = pieces > 1 ? `${rate.toFixed(1)} tokens/s` : '';
      scrollDown();
    }
    const result = await current;
    if (!turn.isConnected) return; // the conversation was cleared meanwhile
    messages.push(asked, { role: 'assistant', content: result.text });
    save();
    numbers.textContent = describe(result);
    await tell(generator, prompt, result, times.ready);
  } catch (error) {
    if (!turn.isConnected) return;
    for (const part of [question, turn, numbers]) part.remove();
    if (!promptInput.value) promptInput.value = prompt;
    fail(error, 'chat');
  } finally {
    turn.classList.remove('busy');
    log.removeAttribute('aria-busy');
    answering = null;
    busy(false);
    scrollDown();
  }
}

/** @param {boolean} now */
function busy(now) {
  sendButton.hidden = now;
  stopButton.hidden = !now;
  const left = document.activeElement === (now ? sendButton : stopButton) || document.activeElement === document.body;
  if (left) (now ? stopButton : promptInput).focus(); // the focused button has just gone
}

/** @param {string} kind @param {string} text */
function addTurn(kind, text) {
  const turn = document.createElement('p');
  turn.className = `turn ${kind}`;
  turn.textContent = text;
  log.append(turn);
  return turn;
}

/** @param {import('./fanlight.js').Result} result */
function describe({ tokens, prompt_tokens, finish_reason, timings }) {
  const ends = { stop: '', length: ', cut at the limit', abort: ', stopped' };
  const parts = [`${prompt_tokens} tokens read`, `${tokens.length} written${ends[finish_reason]}`];
  if (timings.decode_tok_s) parts.push(`${timings.decode_tok_s.toFixed(1)} tokens/s`);
  if (timings.first_token_ms) parts.push(`first after ${(timings.first_token_ms / 1000).toFixed(2)} s`);
  return parts.join(' · ');
}

/** Fulfils `window.fanlightReport`. @param {Generator} used @param {string} prompt
 * @param {import('./fanlight.js').Result} result @param {number} ready */
async function tell({ info, stats }, prompt, result, ready) {
  performance.mark('fanlight:done');
  const done = performance.now();
  const tasks = [...longTasks, ...(taskObserver?.takeRecords() ?? [])].filter(({ startTime }) => startTime >= ready);
  const { timings: loadTimings, extra: _, ...rest } = /** @type {any} */ (info);
  const file = await stats().catch(() => ({})); // the rest of a file that is not needed may be lost
  const found = {
    prompt, ...rest, ...loadTimings, ...file, ...result.timings, reply: result.text, tokens: result.tokens.length,
    longest_task_ms: Math.max(0, ...tasks.map(({ duration }) => duration)),
    prompt_tokens: result.prompt_tokens, finish_reason: result.finish_reason, ready_ms: ready, done_ms: done,
  };
  report(found);
  if (!query.has('report')) return;
  await /** @type {any} */ (window).fanlightKept;
  document.title = `Report ${JSON.stringify(found)}`;
}

function scrollDown() {
  const page = document.documentElement;
  if (page.scrollHeight - page.clientHeight - page.scrollTop < 200) page.scrollTop = page.scrollHeight;
}

// --- what the user does

element('load-form', HTMLFormElement).addEventListener('submit', (event) => {
  event.preventDefault();
  const model = modelInput.value.trim();
  if (model) void load(model);
  else modelInput.focus();
});
element('pick', HTMLButtonElement).addEventListener('click', () => fileInput.click());
fileInput.addEventListener('change', () => {
  const [file] = fileInput.files ?? [];
  fileInput.value = ''; // the same file may be picked again
  if (file) void load(file);
});
element('cancel', HTMLButtonElement).addEventListener('click', () => loading?.abort());
element('retry', HTMLButtonElement).addEventListener('click', () => again());
element('clear', HTMLButtonElement).addEventListener('click', () => {
  answering?.abort();
  messages = [];
  log.replaceChildren();
  save();
  promptInput.focus();
});
element('change', HTMLButtonElement).addEventListener('click', () => {
  leave();
  status.textContent = '';
  choose();
  modelInput.focus();
});
element('ask-form', HTMLFormElement).addEventListener('submit', (event) => {
  event.preventDefault();
  const prompt = promptInput.value.trim();
  if (!prompt || answering) return;
  promptInput.value = '';
  void ask(prompt);
});
promptInput.addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  element('ask-form', HTMLFormElement).requestSubmit();
});
stopButton.addEventListener('click', () => answering?.abort());
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape') (answering ?? loading)?.abort();
});

element('forget-all', HTMLButtonElement).addEventListener('click', async () => {
  if (!confirm('Delete all models and the conversation from this browser?')) return;
  messages = [];
  log.replaceChildren();
  forget();
  await kept.clear().catch((error) => fail(error, 'chooser'));
  choose();
});
for (const kind of ['dragover', 'drop']) {
  document.addEventListener(kind, (event) => {
    const { dataTransfer } = /** @type {DragEvent} */ (event);
    if (!dataTransfer?.types.includes('Files')) return;
    event.preventDefault();
    const [file] = kind === 'drop' && !loading ? dataTransfer.files : [];
    if (!file) return;
    leave();
    void load(file);
  });
}

modelInput.value = query.get('model') ?? '';
const device = query.get('device');
if ([...deviceInput.options].some(({ value }) => value === device)) deviceInput.value = device ?? 'auto';
const prompt = query.get('prompt');
if (prompt) promptInput.value = prompt;
if (await isolate()) await new Promise(() => {}); // the page begins anew
if (scripted && modelInput.value) {
  const rest = Number(query.get('rest'));
  if (rest > 0) {
    await start();
    title('Resting');
    await new Promise((resolve) => setTimeout(resolve, rest * 1000));
  }
  await load(modelInput.value);
  if (prompt && generator) {
    promptInput.value = '';
    void ask(prompt);
  }
} else {
  await goOn();
}

/** As it was before a reload: the conversation, and the model where it is kept here. */
async function goOn() {
  choose();
  const last = remembered();
  if (!last) return;
  messages = last.messages;
  for (const { role, content } of messages) addTurn(role, content);
  if (messages.length) status.textContent = 'The conversation is still here: choose a model to go on.';
  if (!device) deviceInput.value = last.device || 'auto';
  if (modelInput.value || !last.model) return;
  modelInput.value = last.model;
  if (await isKept(last.model)) await load(last.model);
}
// Not before, and not at once: it would take time and memory from what is waited for.
/** @type {any} */ (window).fanlightKept = new Promise((resolve) => setTimeout(resolve, KEEP_AFTER_MS)).then(keepApp);
