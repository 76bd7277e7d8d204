"""From a model and a benchmark to a result."""
