# The inner loop, in the environment that is active; `make` alone says what there is.

PYTHON ?= python
SEEDS ?= 0 1 2
OPTIONS ?=
SLOW = command_line distributed notebooks train_blip train_clip train_qwen captioner
CODE = minivlm tests tools experiments notebooks conftest.py
EXPERIMENTS = $(sort $(wildcard experiments/[0-9]*.py))

.PHONY: help fast test notebooks checkpoints results lint $(EXPERIMENTS)

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

fast:  ## no trainings, command lines, wrong solutions, notebooks, mypy: two and a half minutes
	$(PYTHON) -m pytest tests -q --ignore=tests/wrong_solutions $(SLOW:%=--ignore=tests/test_%.py) -k "not mypy and not tiny_settings"

test:  ## every test, and every cell of every notebook: about twenty minutes on one core
	$(PYTHON) -m pytest

notebooks:  ## execute every notebook and write it with its outputs
	$(PYTHON) tools/execute_notebooks.py

checkpoints:  ## train the models of data/checkpoints again: more than an hour on two cores
	$(PYTHON) tools/build_checkpoints.py

results: $(EXPERIMENTS)  ## the missing rows of every table: hours; SEEDS="0 1 2" OPTIONS=--fresh
$(EXPERIMENTS):
	$(PYTHON) $@ --seeds $(SEEDS) $(OPTIONS)

lint:  ## ruff (style and format) and mypy
	$(PYTHON) -m ruff check $(CODE)
	$(PYTHON) -m ruff format --check $(CODE)
	$(PYTHON) -m mypy
