"""Graph → graph, one pass one file. ``pipeline.py`` lists them; ``rewrite.py`` is their tool."""
