"""Small mechanical faults, put into the sources one at a time, to see which tests notice them: docs/test-diet.md."""
