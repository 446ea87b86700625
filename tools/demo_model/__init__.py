"""Generator, trainer and evaluator of Trifocal's built-in demonstration model (see docs/demo-model.md)."""
