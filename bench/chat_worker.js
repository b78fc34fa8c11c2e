// Fanlight's executor under bench/chat.py: loads a plan, then runs prompts on request.
// In: {load: {plan, model, threads}} or {prompt, generate}. Out: one reply a message.
import { load } from '/fanlight/web/wasm.js';

const STEPS = 16;
const CONTROL = 8;
let session;

const i32 = (numbers) => new Uint8Array(Int32Array.from(numbers).buffer);

/** The model's file, kept as a Blob: nothing of it counts as our memory. */
async function open(address) {
  const blob = await (await fetch(address)).blob();
  return { size: blob.size, stream: (offset, length) => blob.slice(offset, offset + length).stream() };
}

async function start({ plan, model, threads }) {
  const bytes = await (await fetch(plan)).arrayBuffer();
  session = await load(bytes, new Map([['model', await open(model)]]), { threads });
  return session.info;
}

/** Tokens a second; the prompt's time ends with the first new token. */
async function run({ prompt, generate }) {
  const begin = performance.now();
  const known = prompt.slice(0, -1);
  for (let at = 0; at < known.length; at += 128) {
    const tokens = known.slice(at, at + 128);
    const control = i32([at, ...Array(CONTROL - 1).fill(0)]);
    await session.run('prefill', { tokens: i32(tokens), control }, { T: tokens.length });
  }
  const control = i32([known.length, prompt.at(-1), ...Array(CONTROL - 2).fill(0)]);
  await session.run('begin', { control, stops: i32(Array(8).fill(-1)) });
  const tokens = [];
  const take = (count) => (bytes) => {
    tokens.push(...new Int32Array(bytes.buffer, 0, count));
  };
  await session.repeat('decode', 1, 'chosen', { steps: 1 }, take(1));
  const first = performance.now();
  const times = Math.floor((generate - 1) / STEPS);
  await session.repeat('decode', times, 'chosen', { steps: STEPS }, take(STEPS));
  const end = performance.now();
  return {
    prefill: (prompt.length / (first - begin)) * 1000,
    decode: ((times * STEPS) / (end - first)) * 1000,
    prompt_tokens: prompt.length,
    tokens,
  };
}

onmessage = async ({ data }) => {
  try {
    postMessage({ value: data.load ? await start(data.load) : await run(data) });
  } catch (error) {
    postMessage({ error: String(error?.stack ?? error) });
  }
};
