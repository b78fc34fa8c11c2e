// The page of bench/chat.py: `engines.NAME.load(options)` and `.run(prompt)` of Fanlight and wllama.

const MODEL = '/model.gguf';

function fanlight() {
  const worker = new Worker('/bench/chat_worker.js', { type: 'module' });
  const ask = (message) =>
    new Promise((resolve, reject) => {
      worker.onmessage = ({ data }) => (data.error ? reject(new Error(data.error)) : resolve(data.value));
      worker.onerror = (event) => reject(new Error(event.message));
      worker.postMessage(message);
    });
  return {
    load: ({ plan, threads }) => ask({ load: { plan, model: MODEL, threads } }),
    run: ({ ids, generate }) => ask({ prompt: ids, generate }),
  };
}

function wllama() {
  let engine;
  return {
    async load({ threads }) {
      const { Wllama, LoggerWithoutDebug } = await import('/wllama/index.min.js');
      const paths = { default: '/wllama/wasm/wllama.wasm' };
      engine = new Wllama(paths, { suppressNativeLog: true, logger: LoggerWithoutDebug });
      const options = { n_ctx: 512, n_threads: threads, n_gpu_layers: 0, n_parallel: 1 };
      await engine.loadModelFromUrl(location.origin + MODEL, options);
      return { threads: engine.getNumThreads() };
    },
    /** Its own timings, which leave its JavaScript out. */
    async run({ text, generate }) {
      const options = { prompt: text, max_tokens: generate, temperature: 0, stream: true };
      const fixed = { cache_prompt: false, ignore_eos: true, timings_per_token: false };
      let last;
      for await (const piece of await engine.createCompletion({ ...options, ...fixed })) last = piece;
      const { prompt_per_second, predicted_per_second, prompt_n } = last.timings;
      return { prefill: prompt_per_second, decode: predicted_per_second, prompt_tokens: prompt_n };
    },
  };
}

globalThis.engines = { fanlight, wllama };
