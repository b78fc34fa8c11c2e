"""Brings what a page needs from npm into ``fanlight/web/vendor/``; ``fanlight.zip``, ``bundle.js``.

In: ``package-lock.json`` (versions and hashes, checked by ``npm ci``). Out: files that the wheel
carries as package data, so that an installed Fanlight needs no CDN. Called by the build hook and by
``scripts/setup``; quick when nothing has changed. The standard library only.

    python scripts/vendor.py [--dev]     --dev: also the packages for development (TypeScript)
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VENDOR = ROOT / "fanlight" / "web" / "vendor"
MODULES = ROOT / "node_modules"
LICENCES = ROOT / "scripts" / "licences"
# Names what this script has put into VENDOR; an equal one means that there is nothing to do.
STAMP = "vendored.json"

# File in VENDOR → where it comes from. Change the licences' notice below with it.
FILES = {
    "pyodide/pyodide.mjs": MODULES / "pyodide/pyodide.mjs",
    "pyodide/pyodide.asm.mjs": MODULES / "pyodide/pyodide.asm.mjs",
    "pyodide/pyodide.asm.wasm": MODULES / "pyodide/pyodide.asm.wasm",
    "pyodide/python_stdlib.zip": MODULES / "pyodide/python_stdlib.zip",
    "pyodide/pyodide-lock.json": MODULES / "pyodide/pyodide-lock.json",
    "pyodide/LICENCE-MPL-2.0.txt": LICENCES / "MPL-2.0.txt",
    "pyodide/LICENCE-Python-2.0.txt": LICENCES / "Python-2.0.txt",
    "tokenizers.mjs": MODULES / "@huggingface/tokenizers/dist/tokenizers.min.mjs",
    "tokenizers.LICENCE.txt": MODULES / "@huggingface/tokenizers/LICENSE",
    "jinja.js": MODULES / "@huggingface/jinja/dist/index.js",
    "jinja.LICENCE.txt": MODULES / "@huggingface/jinja/LICENSE",
}

# Types for tsc: the npm packages' own, which are in node_modules in development.
TYPES = {
    "pyodide/pyodide.d.mts": "export * from 'pyodide';\n",
    "tokenizers.d.mts": "export * from '@huggingface/tokenizers';\n",
    "jinja.d.ts": "export * from '@huggingface/jinja';\n",
}

NOTICE = """\
This folder is made by scripts/vendor.py from npm packages, unchanged but for file names and
pyodide-lock.json (its list of packages is emptied: nothing is loaded from elsewhere).

pyodide/        pyodide {pyodide}: https://github.com/pyodide/pyodide (MPL-2.0, source there);
                CPython and its standard library inside (Python-2.0)
tokenizers.mjs  @huggingface/tokenizers {@huggingface/tokenizers} (Apache-2.0)
jinja.js        @huggingface/jinja {@huggingface/jinja} (MIT)
fanlight.zip    Fanlight's own Python (Apache-2.0); python/ as bytecode and as memory snapshots, in
                which pyodide and CPython are, too
"""


class VendorError(Exception):
    """npm is missing or failed, or a package lacks a file."""


def main() -> None:
    """Installs, copies, zips; prints one line when something was done."""
    dev = "--dev" in sys.argv[1:]
    try:
        if vendor(dev=dev):
            print(f"vendored {', '.join(f'{k} {v}' for k, v in _versions().items())}")
    except VendorError as error:
        sys.exit(f"vendor: {error}")


def vendor(*, dev: bool = False) -> bool:
    """True if files were copied anew. ``fanlight.zip`` and ``bundle.js`` are made in any case.
    Raises VendorError."""
    if dev:
        install(dev=True)
    fresh = not _complete()
    if fresh:
        install(dev=dev)
        _copy()
    bundle.build_python_zip(VENDOR / "fanlight.zip")
    write_bundle()
    return fresh


def write_bundle() -> None:
    """``bundle.js``, of what is there now."""
    script = bundle.bundle_script((VENDOR / "fanlight.zip").read_bytes())
    bundle.write_whole(VENDOR / "bundle.js", script)


def install(*, dev: bool) -> None:
    """``npm ci`` into ``node_modules``, unless it is there for this lock file already."""
    mark = MODULES / ".fanlight"
    wanted = {f"{_lock_hash()} dev", f"{_lock_hash()} {'dev' if dev else 'run'}"}
    if mark.is_file() and mark.read_text() in wanted:
        return
    npm = shutil.which("npm")
    if npm is None:
        raise VendorError("npm is not installed. Install Node.js 20 or newer with npm")
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    if not dev:
        command.append("--omit=dev")
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    if done.returncode:
        raise VendorError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    mark.write_text(f"{_lock_hash()} {'dev' if dev else 'run'}")


def _copy() -> None:
    """A new folder beside VENDOR, then renamed: a reader never meets half of it."""
    fresh = VENDOR.with_name(f"vendor.{os.getpid()}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    for name, source in FILES.items():
        if not source.is_file():
            raise VendorError(f"{source} is missing. Has the package's layout changed?")
        (fresh / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, fresh / name)
    for name, text in TYPES.items():
        (fresh / name).write_text(text, encoding="utf-8")
    _empty_lock(fresh / "pyodide/pyodide-lock.json")
    (fresh / "NOTICE.txt").write_text(NOTICE.format_map(_versions()), encoding="utf-8")
    (fresh / STAMP).write_text(json.dumps(_stamp(fresh), indent=1), encoding="utf-8")
    shutil.rmtree(VENDOR, ignore_errors=True)
    os.replace(fresh, VENDOR)


def _empty_lock(path: Path) -> None:
    """Pyodide reads its lock file at start; without packages it can't load any from its CDN."""
    lock = json.loads(path.read_text(encoding="utf-8"))
    lock["packages"] = {}
    path.write_text(json.dumps(lock), encoding="utf-8")


def _stamp(folder: Path) -> dict[str, Any]:
    recipe = hashlib.sha256(_recipe_bytes()).hexdigest()
    sizes = {name: (folder / name).stat().st_size for name in FILES if (folder / name).is_file()}
    return {"recipe": recipe, "versions": _versions(), "sizes": sizes}


def _complete() -> bool:
    stamp = VENDOR / STAMP
    return stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == _stamp(VENDOR)


def _recipe_bytes() -> bytes:
    """All that decides what VENDOR holds: the lock file and the tables above."""
    table = {name: source.relative_to(ROOT).as_posix() for name, source in FILES.items()}
    lock = (ROOT / "package-lock.json").read_bytes()
    return lock + json.dumps([table, TYPES, NOTICE]).encode()


def _versions() -> dict[str, str]:
    wanted = json.loads((ROOT / "package.json").read_text(encoding="utf-8"))["dependencies"]
    return dict(sorted(wanted.items()))


def _lock_hash() -> str:
    return hashlib.sha256((ROOT / "package-lock.json").read_bytes()).hexdigest()


def _load_bundle() -> Any:
    """``fanlight/server/bundle.py`` without the package, which may not be installed yet."""
    path = ROOT / "fanlight" / "server" / "bundle.py"
    spec = importlib.util.spec_from_file_location("fanlight_bundle", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bundle = _load_bundle()


if __name__ == "__main__":
    main()
