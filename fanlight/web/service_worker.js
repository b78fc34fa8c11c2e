// The page's service worker: keeps all files of this version, Python included, and answers with them, so that a
// visit needs no network; adds the headers of cross-origin isolation, which static hosts can't send. A new version
// is kept beside the old one, which goes on serving the pages that run: it takes over when they are closed. Models
// are not its business. A classic script, as not all browsers take modules here.

importScripts('./vendor/bundle.js');

/** @typedef {{waitUntil(work: Promise<unknown>): void, addRoutes?(rules: object[]): Promise<void>}} InstallEvent */
/** @typedef {{request: Request, respondWith(answer: Promise<Response>): void}} FetchEvent */

const scope = /** @type {any} */ (self);
const { fanlightBundle: made } = self;
const PREFIX = 'fanlight-app-';
const CACHE = PREFIX + made.version;
const LARGE = /\.(wasm|gz|zip|mjs)$/;
const HOME = new URL('./', self.location.href);
const HEADERS = {
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-embedder-policy': 'require-corp',
  'cross-origin-resource-policy': 'same-origin',
};

/** Paths of all that is kept: of Python's two snapshots the one that this browser takes. */
function wanted() {
  const other = 'Suspending' in WebAssembly ? made.python.plain : made.python.jspi;
  return Object.keys(made.files).filter((path) => path !== other);
}

/** Wakes the garbage collector, as `tellCollector` of buffers.js: bodies of responses are bytes that it doesn't see. */
function collect() {
  try {
    new ArrayBuffer(128 << 20).transfer?.(0);
  } catch {
    // so much is not there even as an address
  }
}

const address = (/** @type {string} */ path) => new URL(path, HOME).href;

async function keepAll() {
  const cache = await caches.open(CACHE);
  const older = (await caches.keys()).filter((name) => name.startsWith(PREFIX) && name !== CACHE);
  const stores = await Promise.all(older.map((name) => caches.open(name)));
  for (const path of wanted()) {
    const hash = made.files[path];
    const response = (await copyOf(stores, path, hash)) ?? (await download(path, hash));
    await cache.put(address(path), response);
    if (LARGE.test(path)) collect();
  }
  const index = await cache.match(address('index.html'));
  if (index) await cache.put(HOME.href, index);
  const script = `self.fanlightBundle = ${JSON.stringify(made)};`;
  const headers = { ...HEADERS, 'content-type': 'text/javascript; charset=utf-8' };
  await cache.put(address('vendor/bundle.js'), new Response(script, { headers }));
}

/** What an older version has of a file that did not change. @param {Cache[]} older @param {string} path
 * @param {string} hash */
async function copyOf(older, path, hash) {
  for (const cache of older) {
    const found = await cache.match(address(path));
    if (found?.headers.get('x-fanlight-hash') === hash) return found;
  }
  return null;
}

/** @param {string} path @param {string} hash */
async function download(path, hash) {
  const response = await fetch(address(path), { cache: 'no-cache' });
  if (!response.ok) throw new Error(`${path}: the server answered ${response.status}`);
  const body = await response.arrayBuffer();
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', body)).subarray(0, 8);
  const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, '0')).join('');
  if (found !== hash) throw new Error(`${path}: the server has another version`);
  const headers = new Headers(response.headers);
  for (const name of ['content-encoding', 'content-length', 'etag', 'date']) headers.delete(name);
  for (const [name, value] of Object.entries({ ...HEADERS, 'x-fanlight-hash': hash })) headers.set(name, value);
  if (!path.endsWith('.gz') || typeof DecompressionStream === 'undefined') return new Response(body, { headers });
  // A snapshot: unpacked once, not at every start.
  headers.set('x-fanlight-unpacked', '1');
  return new Response(new Blob([body]).stream().pipeThrough(new DecompressionStream('gzip')), { headers });
}

scope.addEventListener('install', (/** @type {InstallEvent} */ event) => {
  event.waitUntil(keepAll());
  // Where the browser can, it reads the cache by itself, without waking this worker; what is not there comes from
  // the network. Only the page's own address, which may have a query, is looked up here.
  const rules = [
    { condition: { requestMode: 'navigate' }, source: 'fetch-event' },
    { condition: { urlPattern: `${HOME.href}*`, requestMethod: 'get' }, source: { cacheName: CACHE } },
  ];
  event.addRoutes?.(rules).catch(() => {});
});

scope.addEventListener('activate', (/** @type {InstallEvent} */ event) => {
  event.waitUntil(caches.keys().then((names) => {
    const old = names.filter((name) => name.startsWith(PREFIX) && name !== CACHE);
    return Promise.all(old.map((name) => caches.delete(name)));
  }));
});

scope.addEventListener('fetch', (/** @type {FetchEvent} */ event) => {
  const { request } = event;
  const url = new URL(request.url);
  const path = url.href.slice(0, url.href.length - url.search.length - url.hash.length).slice(HOME.href.length);
  const ours = url.href.startsWith(HOME.href) && (path === '' || path === 'vendor/bundle.js' || path in made.files);
  if (request.method !== 'GET' || !ours) return;
  event.respondWith(
    caches.open(CACHE).then((cache) => cache.match(address(path))).then((kept) => kept ?? fetch(request)),
  );
});
