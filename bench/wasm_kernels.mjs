// Times program 0 of a linked module on one thread. In (stdin, JSON): see `job` in wasm_kernels.py. Out: seconds of
// the best and of the median run.
import { readFileSync } from 'node:fs';

const { module, pages, buffersAt, buffers, seconds } = JSON.parse(readFileSync(0, 'utf8'));
const memory = new WebAssembly.Memory({ initial: pages, maximum: 65536 });
const { instance } = await WebAssembly.instantiate(Buffer.from(module, 'base64'), { env: { memory } });
const { run } = instance.exports;

// Numbers as models have them: no subnormals, on which processors are slow. Scales of blocks are f16 near 1/16.
const SCALES = { q4_0: [18, 0], q4_1: [20, 0, 2], q8_0: [34, 0], q4_k: [144, 0, 2], q6_k: [210, 208] };
let state = 1;
const random = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
const table = new Uint32Array(memory.buffer, buffersAt, buffers.length);
buffers.forEach(([address, size, dtype], i) => {
  table[i] = address;
  const bytes = new Uint8Array(memory.buffer, address, size);
  if (dtype === 'f32') new Float32Array(memory.buffer, address, size >> 2).forEach((_, j, a) => (a[j] = random() - 0.5));
  else bytes.forEach((_, j) => (bytes[j] = random() * 256));
  if (dtype === 'f16' || dtype === 'bf16') for (let j = 1; j < size; j += 2) bytes[j] = (bytes[j] & 0x83) | 0x38;
  const [step, ...places] = SCALES[dtype] ?? [size];
  for (const place of places) for (let at = place + 1; at < size; at += step) bytes[at] = 0x2c;
});

// V8 compiles anew what is hot: half a second before the clock counts.
const warm = performance.now() + 500;
while (performance.now() < warm) run(0, 0, 1);
const times = [];
const end = performance.now() + seconds * 1000;
while (performance.now() < end || times.length < 5) {
  const from = performance.now();
  run(0, 0, 1);
  times.push(performance.now() - from);
}
times.sort((a, b) => a - b);
process.stdout.write(JSON.stringify({ best: times[0] / 1000, median: times[times.length >> 1] / 1000 }));
