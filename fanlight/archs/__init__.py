"""Architectures of weights that come without a graph: configuration → IR. One file per family, one
row a model."""
