"""Fanlight: AI inference in the web browser, written in Python."""

__version__ = "0.1.0"
