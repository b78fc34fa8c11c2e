// What only workers have and the dom library lacks. `self` in a worker file:
//   const scope = /** @type {DedicatedWorkerGlobalScope} */ (/** @type {unknown} */ (globalThis));

interface DedicatedWorkerGlobalScope extends EventTarget {
  readonly name: string;
  readonly crossOriginIsolated: boolean;
  postMessage(message: unknown, transfer?: Transferable[]): void;
  close(): void;
  onmessage: ((event: MessageEvent) => void) | null;
  addEventListener(type: 'message', listener: (event: MessageEvent) => void): void;
  addEventListener(type: string, listener: EventListenerOrEventListenerObject): void;
}

interface FileSystemSyncAccessHandle {
  read(bytes: AllowSharedBufferSource, options?: { at?: number }): number;
  write(bytes: AllowSharedBufferSource, options?: { at?: number }): number;
  truncate(size: number): void;
  getSize(): number;
  flush(): void;
  close(): void;
}

interface FileSystemFileHandle {
  /** `mode` is Chromium's: elsewhere a file is open once at a time. */
  createSyncAccessHandle(options?: {
    mode?: 'readwrite' | 'read-only' | 'readwrite-unsafe';
  }): Promise<FileSystemSyncAccessHandle>;
}

// Set by vendor/bundle.js; bundle.js has its type.
interface Window {
  fanlightBundle: import('../bundle.js').Bundle;
}

declare function importScripts(...urls: string[]): void;
