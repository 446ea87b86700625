"""Trifocal side by side with other engines: `python -m benchmarks.peers`, which `make bench` calls."""
