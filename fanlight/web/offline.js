// The page's side of service_worker.js: registers it, and reloads a page whose host can't send the headers of
// cross-origin isolation, once, so that the service worker adds them.

const TRIED = 'fanlight-isolation-tried';

/** Whether there can be a service worker here. */
function possible() {
  return 'serviceWorker' in navigator && isSecureContext;
}

/** Keeps the page and all that it needs for visits without network. Resolves when that is done; a failure, which
 * the next visit mends, is told on the console only. */
export async function keepApp() {
  if (!possible()) return;
  try {
    const registration = await navigator.serviceWorker.register(
      new URL('./service_worker.js', import.meta.url), { updateViaCache: 'all' },
    );
    const begun = registration.installing ?? registration.waiting;
    if (!registration.active && begun) await settled(begun);
  } catch (error) {
    console.warn('Fanlight is not kept for visits without network:', error);
  }
}

/** Reloads a page that is not cross-origin isolated and could be: true if so. It is then isolated or, if that
 * failed, goes on without. */
export async function isolate() {
  if (crossOriginIsolated || !possible() || window !== window.top || sessionStorage.getItem(TRIED)) return false;
  sessionStorage.setItem(TRIED, '1');
  await keepApp();
  if (!(await navigator.serviceWorker.getRegistration())?.active) return false;
  location.reload();
  return true;
}

/** @param {ServiceWorker} worker @returns {Promise<void>} when it is installed and active, or has failed */
function settled(worker) {
  return new Promise((resolve) => {
    const look = () => {
      if (worker.state === 'activated' || worker.state === 'redundant') resolve();
    };
    worker.addEventListener('statechange', look);
    look();
  });
}
