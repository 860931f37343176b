# make sample      set up, then sample 1024 x 1024 px of tissue into sample.zarr and sample.png
# make test        set up, then lint, type-check and run every test, on 1 to 4 MPI ranks (13 minutes on 2 cores)
# make check       of these what a developer runs all the time (2 minutes)
# make test-long   what is too long for every change: more ranks, many random kills, large images
# make gpu         on a machine with a GPU, without a network: CUDA tests and benchmarks into benchmarks/notes (10 minutes)
PYTHON ?= python3
VENV ?= .venv
RANKS ?= 2
JOBS ?= 2
BIN := $(VENV)/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: sample test check test-long gpu lint clean

sample: $(VENV)/.sample
	$(BIN)/mpiexec -n $(RANKS) $(BIN)/python -m engine.sample $(ARGS)

test: $(VENV)/.test lint
	$(PYTEST) -n $(JOBS) -m "not long and not timing"
	$(PYTEST) -m timing
	for n in 2 3 4; do OMP_NUM_THREADS=1 $(BIN)/mpiexec -n $$n $(BIN)/python -m pytest tests/mpi || exit 1; done

check: $(VENV)/.test lint
	$(PYTEST) -n $(JOBS) -m "not runs and not long and not timing or smoke"

test-long: $(VENV)/.test
	$(PYTEST) -m long

gpu:
	benchmarks/gpu.sh

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.sample: setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[mpich]'
	touch $@

$(VENV)/.test: $(VENV)/.sample
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[mpich,test]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps torch-fidelity # asks for torchvision
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
