# make run: train maer on the embedded benchmark.  make test: the whole suite.  make help: the rest.
PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed

# What mypy judges under --strict: the trainer, methods and benchmarks at their seams, the rooms they share.
TYPED  := -p engram.utils.training -p engram.utils.runs -p engram.utils.buffers -p engram.utils.metrics \
          -p engram.datasets -m engram.models.method -m engram.main

# Where the environment forbids bytecode (PYTHONDONTWRITEBYTECODE) every process would compile these again: 2 s of a
# start with torch, 4 s of one that logs to MLflow. They are compiled once, when they are installed.
COMPILED := torch._dynamo, torchvision, mlflow.tracking, mlflow.store.tracking.sqlalchemy_store, \
            matplotlib.backends.backend_agg, numba, scipy.optimize, sklearn.model_selection, pytest

.DEFAULT_GOAL := help
.PHONY: help install run test test-quick lint bench ui docs clean

help:
	@echo "make run    train maer on seq-digits (real 8x8 digits, no download) and print the result"
	@echo "make test   lint and the whole test suite"
	@echo "make test-quick  the tests that take seconds, without those marked slow"
	@echo "make lint   ruff, and mypy --strict on the typed seams"
	@echo "make bench  speed of the trainer and of the data path, as ratios"
	@echo "make ui     browse the logged runs (mlflow ui)"
	@echo "make docs   build the documentation as a static site (runs/docs/); make test builds it too"
	@echo "make clean  remove the environment"

$(STAMP): pyproject.toml
	@echo "== creating $(VENV) and installing the dependencies of pyproject.toml"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11; try make PYTHON=python3.11"; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check uv
	$(PY) -m uv pip install --python $(PY) -e '.[dev]' || \
	  { echo "== uv could not; trying pip (slower)"; $(PY) -m pip install --quiet -e '.[dev]'; }
	PYTHONDONTWRITEBYTECODE= $(PY) -c "import $(COMPILED)"
	@touch $(STAMP)

install: $(STAMP)

run: $(STAMP)
	$(PY) main.py --model=maer --dataset=seq-digits

test: lint
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-quick: $(STAMP)
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	mkdir -p $(VENV)/typing && ln -sfn "$(CURDIR)" $(VENV)/typing/engram  # mypy knows no __path__
	MYPYPATH=$(VENV)/typing $(PY) -m mypy --strict $(TYPED)
	MYPYPATH=$(VENV)/typing $(PY) -m mypy --strict tests/unit/test_ports.py

bench: $(STAMP)
	$(PY) -m scripts.bench

ui: $(STAMP)
	$(PY) -m mlflow ui

docs: $(STAMP)
	$(PY) scripts/docs.py

clean:
	rm -rf $(VENV)
