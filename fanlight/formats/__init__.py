"""Model files → structure, lazily: names, shapes, dtypes and offsets; never the tensors' bytes."""
