"""WebAssembly: encoder (knows no ML), loop kernels, templates, linker."""
