// Plans of earlier visits, so that the next one starts without compiling: in Cache Storage, behind an index with a
// layout version. In: a key, a plan's bytes, and a text that its maker noted. Knows nothing of either. A changed
// layout gets a new number in CACHE, PREFIX and LAYOUT.

/** @typedef {{plan: ArrayBuffer, notes: string}} Kept */
/** @typedef {{layout: 1, plans: Record<string, {bytes: number, last_used: number}>}} Index */

const LAYOUT = 1;
const CACHE = 'fanlight-plans-v1';
const PREFIX = '/.fanlight/plans/v1/';
/** Bytes of all plans; those that were not used for longest go first. */
const MOST = 64 << 20;

/** The hash of all that a plan depends on, as JSON. @param {unknown[]} parts */
export async function keyOf(...parts) {
  const text = new TextEncoder().encode(JSON.stringify([LAYOUT, ...parts]));
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', text));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/** Whether anything may be kept. */
export async function somethingIsKept() {
  return typeof caches !== 'undefined' && (await caches.has(CACHE).catch(() => false));
}

/** What is kept under `key`, if anything. @param {string} key @returns {Promise<Kept | null>} */
export async function take(key) {
  const cache = await caches.open(CACHE);
  const [index, plan, notes] = await Promise.all([
    indexOf(cache), cache.match(`${PREFIX}${key}/plan`), cache.match(`${PREFIX}${key}/notes`),
  ]);
  if (!(key in index.plans) || !plan || !notes) return null;
  void change((now) => {
    if (now.plans[key]) now.plans[key].last_used = Date.now();
  }).catch(() => {});
  return { plan: await plan.arrayBuffer(), notes: await notes.text() };
}

/** Throws QuotaExceededError. @param {string} key
 * @param {{plan: ArrayBuffer, notes: Uint8Array<ArrayBuffer>}} kept notes: their UTF-8 */
export async function keep(key, { plan, notes }) {
  await change(async (index, cache) => {
    const bytes = plan.byteLength + notes.length;
    index.plans[key] = { bytes, last_used: Date.now() };
    await cache.put(`${PREFIX}${key}/plan`, new Response(plan));
    await cache.put(`${PREFIX}${key}/notes`, new Response(notes));
    const oldest = Object.entries(index.plans).sort(([, a], [, b]) => a.last_used - b.last_used);
    let total = oldest.reduce((sum, [, entry]) => sum + entry.bytes, 0);
    for (const [old, entry] of oldest) {
      if (total <= MOST || old === key) continue;
      total -= entry.bytes;
      await drop(old, index, cache);
    }
  });
}

/** @param {string} key */
export async function forget(key) {
  await change((index, cache) => drop(key, index, cache));
}

export async function clear() {
  await caches.delete(CACHE);
}

/** @param {string} key @param {Index} index @param {Cache} cache */
async function drop(key, index, cache) {
  delete index.plans[key];
  await Promise.all([cache.delete(`${PREFIX}${key}/plan`), cache.delete(`${PREFIX}${key}/notes`)]);
}

/** @param {Cache} cache @returns {Promise<Index>} */
async function indexOf(cache) {
  const found = await (await cache.match(`${PREFIX}index`))?.json().catch(() => null);
  return found?.layout === LAYOUT ? found : { layout: LAYOUT, plans: {} };
}

/** Changes the index; one tab at a time. @param {(index: Index, cache: Cache) => unknown} work */
async function change(work) {
  await navigator.locks.request('fanlight:plans', async () => {
    const cache = await caches.open(CACHE);
    const index = await indexOf(cache);
    await work(index, cache);
    await cache.put(`${PREFIX}index`, Response.json(index));
  });
}
