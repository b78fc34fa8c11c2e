// What this copy of Fanlight consists of: vendor/bundle.js, made by fanlight/server/bundle.py, sets it as a global,
// which serves modules, workers and the service worker alike.

import './vendor/bundle.js';

/**
 * @typedef {object} PythonFiles paths of Python's files; a snapshot that was not made for this package is null
 * @property {string} id hash of the package's sources
 * @property {string} zip the package, as bytecode if there is a snapshot
 * @property {string | null} jspi snapshot for browsers that can suspend WebAssembly
 * @property {string | null} plain snapshot for those that can't
 */
/**
 * @typedef {object} Bundle
 * @property {string} version hash of all files
 * @property {PythonFiles} python
 * @property {Record<string, string>} files path → hash
 */

export const bundle = self.fanlightBundle;
