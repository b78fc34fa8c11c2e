"""Graph → kernels: the loop IR that both targets share, lowering to it, memory planning."""
