// Runs a linked module in node with worker_threads. In (stdin, JSON): {module, threads, pages, actions}, bytes in
// base64; actions are ["write", address, bytes], ["run", program], ["read", address, length]. Out: the reads.
import { readFileSync } from 'node:fs';
import { Worker, isMainThread, parentPort, workerData } from 'node:worker_threads';

if (isMainThread) await main();
else {
  const { module, memory, tid, threads } = workerData;
  const { exports } = await WebAssembly.instantiate(module, { env: { memory } });
  parentPort.postMessage('ready');
  exports.worker(tid, threads);
  parentPort.postMessage('done'); // only after quit()
}

async function main() {
  const { module: code, threads, pages, actions } = JSON.parse(readFileSync(0, 'utf8'));
  const module = await WebAssembly.compile(Buffer.from(code, 'base64'));
  const memory = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
  const { exports } = await WebAssembly.instantiate(module, { env: { memory } });
  const ended = [];
  const ready = [];
  for (let tid = 1; tid < threads; tid++) {
    const worker = new Worker(new URL(import.meta.url), { workerData: { module, memory, tid, threads } });
    ready.push(new Promise((resolve) => worker.once('message', resolve)));
    ended.push(new Promise((resolve) => worker.once('exit', resolve)));
  }
  await Promise.all(ready);
  const bytes = new Uint8Array(memory.buffer);
  const reads = [];
  for (const [kind, place, value] of actions) {
    if (kind === 'write') bytes.set(Buffer.from(value, 'base64'), place);
    else if (kind === 'run') exports.start(place, threads);
    else reads.push(Buffer.from(bytes.slice(place, place + value)).toString('base64'));
  }
  exports.quit();
  await Promise.all(ended);
  process.stdout.write(JSON.stringify(reads));
}
