# Everything starts here. A target sets up .venv by itself; a stamp file makes the next run quick.
PYTHON ?= python3
BIN := .venv/bin
RUN_STAMP := .venv/.installed-run
DEV_STAMP := .venv/.installed-dev
ARGS ?=

.PHONY: help setup demo check test test-slow test-clients test-prometheus sanitize bench format clean

help:
	@echo "make demo [ARGS=--once]  set up, start the server on the built-in model, ask the sample questions"
	@echo "make test                set up, lint, type-check, run the tests"
	@echo "make test-slow           run the tests that take minutes or a download, with all cases of all kernels; not part of make test"
	@echo "make test-clients        install clients by others and run their tests against the built-in model"
	@echo "make test-prometheus     fetch Debian's Prometheus, let it scrape a server and run the queries of the dashboards"
	@echo "make sanitize            run the tests of the kernels under AddressSanitizer and UndefinedBehaviorSanitizer"
	@echo "make check               only lint, types and import rules"
	@echo "make bench [ARGS=--quick] measure against other installed engines, write docs/performance.md"
	@echo "make format              let ruff rewrite the sources, write the generated docs"

setup: $(DEV_STAMP)

$(RUN_STAMP): pyproject.toml constraints.txt scripts/setup
	@PYTHON=$(PYTHON) scripts/setup run

$(DEV_STAMP): pyproject.toml constraints.txt scripts/setup
	@PYTHON=$(PYTHON) scripts/setup dev

demo: $(RUN_STAMP)
	@$(BIN)/python -m trifocal demo $(ARGS)

check: $(DEV_STAMP)
	@scripts/check

test: $(DEV_STAMP)
	@scripts/check
	@scripts/test -n auto --maxprocesses 4 --dist loadfile $(ARGS)

test-slow: $(DEV_STAMP)
	@scripts/test -m slow $(ARGS)

test-clients: $(DEV_STAMP)
	@scripts/test-clients $(ARGS)

test-prometheus: $(DEV_STAMP)
	@scripts/prometheus $(ARGS)

sanitize: $(DEV_STAMP)
	@scripts/sanitize $(ARGS)

bench: $(DEV_STAMP)
	@$(BIN)/python -m benchmarks.peers $(ARGS)

format: $(DEV_STAMP)
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format --quiet .
	@$(BIN)/python -m tools.configuration
	@$(BIN)/python -m tools.request_fields

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
