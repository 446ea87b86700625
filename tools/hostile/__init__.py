"""Inputs that want to break a server, and what sends them: see `corpus.py` and `benchmarks/hostile.py`."""
