"""Models that come with a graph of their own → modules."""
