"""The IR: one graph, one node type, one op list (``ops.py``)."""
