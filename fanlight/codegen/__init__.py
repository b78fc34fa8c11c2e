"""Kernels → code: WGSL text and WebAssembly bytes."""
