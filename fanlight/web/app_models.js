// The models that a visitor can choose without typing: those that the server names in models.json, and
// those that this browser keeps, which can be forgotten. In: a list element. Knows nothing of pipelines.

import { megabytes } from './app_stages.js';
import { kept } from './fanlight.js';

/** @typedef {{url: string, name: string, size: number | null, have: number, local: boolean}} Known bytes; local: kept here */

/** What the server offers and what is kept here, each model once. @returns {Promise<Known[]>} */
async function known() {
  const [offered, local] = await Promise.all([served(), kept.list().catch(() => [])]);
  /** @type {Map<string, Known>} */
  const all = new Map(offered.map((model) => [model.url, model]));
  for (const { url, size, have } of local) all.set(url, { url, name: nameOf(url), size, have, local: true });
  return [...all.values()].sort((a, b) => Number(b.local) - Number(a.local) || a.name.localeCompare(b.name));
}

/** Of models.json beside the page: [{url, size}], size in bytes or null; a host without one offers none. @returns {Promise<Known[]>} */
async function served() {
  const response = await fetch('models.json').catch(() => null);
  if (!response?.ok) return [];
  const rows = await response.json().catch(() => []);
  return rows.map((/** @type {{url: string, size: number | null}} */ { url, size }) => {
    const { href } = new URL(url, response.url);
    return { url: href, name: nameOf(href), size, have: 0, local: false };
  });
}

/** @param {string} url */
function nameOf(url) {
  return decodeURIComponent(new URL(url).pathname.split('/').pop() || url);
}

/** Whether all of a URL is kept here. @param {string} url */
export async function isKept(url) {
  const found = (await kept.list().catch(() => [])).find((file) => file.url === url);
  return found?.complete ?? false;
}

/**
 * Fills `list` with a row for each model; `choose` gets the URL of the one that was clicked. The list is hidden
 * where there is none.
 * @param {HTMLElement} list @param {(url: string) => void} choose
 */
export async function listModels(list, choose) {
  const models = await known();
  list.replaceChildren(...models.map((model) => row(model, choose, () => void listModels(list, choose))));
  list.hidden = models.length === 0;
}

/** @param {Known} model @param {(url: string) => void} choose @param {() => void} renew */
function row({ url, name, size, have, local }, choose, renew) {
  const item = document.createElement('li');
  const open = document.createElement('button');
  open.type = 'button';
  open.className = 'model';
  open.title = url;
  const detail = document.createElement('span');
  detail.className = 'amount';
  const whole = size !== null && have >= size;
  const amount = size === null ? '' : have && !whole ? `${megabytes(have)} of ${megabytes(size)}` : megabytes(size);
  detail.textContent = [amount, local ? (whole ? 'kept here' : 'begun here') : 'on this server'].filter(Boolean).join(' · ');
  open.append(name, detail);
  open.addEventListener('click', () => choose(url));
  item.append(open);
  if (local) item.append(forgetButton(url, name, renew));
  return item;
}

/** @param {string} url @param {string} name @param {() => void} renew */
function forgetButton(url, name, renew) {
  const button = document.createElement('button');
  button.type = 'button';
  button.textContent = 'Forget';
  button.setAttribute('aria-label', `Forget ${name}: delete it from this browser`);
  button.addEventListener('click', async () => {
    button.disabled = true;
    await kept.remove(url).catch(() => {}); // the new list shows whether it is gone
    renew();
  });
  return button;
}
