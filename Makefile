# make sample   set up, then sample 1024 x 1024 px of tissue into sample.zarr and sample.png
# make test     set up, then lint, type-check and run every test, on 1 to 4 MPI ranks
PYTHON ?= python3
VENV ?= .venv
RANKS ?= 2
BIN := $(VENV)/bin

.PHONY: sample test lint clean

sample: $(VENV)/.sample
	$(BIN)/mpiexec -n $(RANKS) $(BIN)/python -m engine.sample $(ARGS)

test: $(VENV)/.test lint
	$(BIN)/python -m pytest tests --ignore=tests/mpi
	for n in 1 2 3 4; do $(BIN)/mpiexec -n $$n $(BIN)/python -m pytest tests/mpi || exit 1; done

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
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
