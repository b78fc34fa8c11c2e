"""WebGPU: WGSL text for every op. ``text`` and ``link`` know no ML; the compiler asks ``table``."""
