"""WebGPU: WGSL text for every op. ``text`` and ``link`` know no ML; ``table`` is what the compiler asks."""
