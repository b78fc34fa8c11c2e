"""Tasks: one task, one file, one row in ``TASKS`` of ``fanlight/pipelines.py``, one test."""
