"""Executors for CPython (wgpu, wasmtime), the bridge to the page's executor, drivers of a real
browser."""
