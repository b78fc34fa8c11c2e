// The list of what loading does: a bar for each stage, with bytes, speed and time left. In: progress
// events. Knows nothing of models.

/** @typedef {import('./fanlight.js').Progress} Progress */

const STAGES = ['python', 'download', 'compile', 'load'];
/** The speed is that of the last seconds. */
const WINDOW_MS = 4000;
/** Before so much has been seen, a speed would be a guess. */
const LEAST_MS = 750;

export class Stages {
  /** @type {Map<string, {time: number, done: number}[]>} what each stage has told of late */
  #seen = new Map();

  /** @param {HTMLElement} list its items have the attribute data-stage */
  constructor(list) {
    this.list = list;
  }

  reset() {
    this.#seen.clear();
    for (const stage of STAGES) {
      const { item, bar, amount } = this.#parts(stage);
      item.className = '';
      bar.value = 0;
      amount.textContent = '';
    }
  }

  /** @param {Progress} progress */
  show({ stage, done, total }) {
    if (!STAGES.includes(stage)) return;
    const { item, bar, amount } = this.#parts(stage);
    const whole = done >= total;
    item.className = whole ? 'done' : 'busy';
    if (!whole && total <= 1) bar.removeAttribute('value'); // busy, nobody knows how far
    else bar.value = total ? done / total : 1;
    if (total <= 1) amount.textContent = whole ? '' : '…';
    else if (stage === 'compile') amount.textContent = `${done} of ${total} kernels`;
    else if (whole) amount.textContent = megabytes(total);
    else amount.textContent = [`${megabytes(done)} of ${megabytes(total)}`, ...this.#pace(stage, done, total)].join(' · ');
  }

  /** Speed and time left, when they are known.
   * @param {string} stage @param {number} done @param {number} total @returns {string[]} */
  #pace(stage, done, total) {
    const now = performance.now();
    const seen = (this.#seen.get(stage) ?? []).filter(({ time }) => now - time < WINDOW_MS);
    this.#seen.set(stage, [...seen, { time: now, done }]);
    const [first] = seen;
    if (!first || now - first.time < LEAST_MS || done <= first.done) return [];
    const rate = (done - first.done) / (now - first.time);
    return [`${megabytes(rate * 1000)}/s`, `${duration((total - done) / rate)} left`];
  }

  /** @param {string} stage */
  #parts(stage) {
    const item = /** @type {HTMLElement} */ (this.list.querySelector(`[data-stage="${stage}"]`));
    const bar = /** @type {HTMLProgressElement} */ (item.querySelector('progress'));
    const amount = /** @type {HTMLElement} */ (item.querySelector('.amount'));
    return { item, bar, amount };
  }
}

/** @param {number} bytes */
export function megabytes(bytes) {
  return bytes < 1e9 ? `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB` : `${(bytes / 1e9).toFixed(2)} GB`;
}

/** @param {number} ms */
function duration(ms) {
  const seconds = Math.ceil(ms / 1000);
  if (seconds < 90) return `${seconds} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `${minutes} min` : `${(minutes / 60).toFixed(1)} h`;
}
