"""Measurements in real browsers: the demo, and what loading costs in memory."""
