"""References: what a model must answer, by transformers in f32 over the same weights."""
