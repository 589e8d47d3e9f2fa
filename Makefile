# Two commands matter: `make plan` (install the base and run the main job) and `make test` (everything checked).
PYTHON ?= python3
BASE := .venv
FULL := .venv-test
PEERS := .venv-peers
MODEL ?= Qwen/Qwen3-32B
MEASUREMENTS ?= ../shared/measurements
GOAL ?= --gpus h200:1..8 --isl 4000 --osl 500 --ttft 0.3 --tpot 0.01
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: plan test lint types contracts tests test-slow benchmark benchmark-search docs accuracy calibration community lock clean

plan: $(BASE)/installed
	$(BASE)/bin/nearpeak plan $(MODEL) $(GOAL)

test: lint types contracts tests

lint: $(FULL)/installed
	$(FULL)/bin/ruff check .
	$(FULL)/bin/ruff format --check .

types: $(FULL)/installed
	$(FULL)/bin/mypy

contracts: $(FULL)/installed
	$(FULL)/bin/lint-imports

tests: $(FULL)/installed
	OMP_NUM_THREADS=1 $(FULL)/bin/pytest -n 2 -m "not slow"

test-slow: $(FULL)/installed
	$(FULL)/bin/pytest -m slow

benchmark: $(FULL)/installed
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(FULL)/bin/python benchmarks/operator_throughput.py
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(FULL)/bin/python benchmarks/plan_throughput.py
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(FULL)/bin/python benchmarks/simulate_throughput.py

# nearpeak's default search beside its peers on every measured kernel space: hours the first time, since the slowest
# peer takes minutes a run; runs are kept in build/search and only missing ones are made.
benchmark-search: $(FULL)/installed $(PEERS)/installed
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(PEERS)/bin/python benchmarks/search_peers.py \
		$(MEASUREMENTS)/kernels/*.parquet --cache build/search
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(FULL)/bin/python benchmarks/search.py \
		$(MEASUREMENTS)/kernels/*.parquet --cache build/search

docs: $(FULL)/installed
	$(FULL)/bin/python tools/write_docs.py

# The board of docs/accuracy.md, with everything left out of the fit in turn: some twenty minutes.
accuracy: $(FULL)/installed
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(FULL)/bin/python tools/write_accuracy.py $(MEASUREMENTS) docs/accuracy.md

# The learned scheduler of `nearpeak fleet community`: some two minutes.
community: $(FULL)/installed
	OMP_NUM_THREADS=1 $(FULL)/bin/python -m nearpeak.fleet.community_policy

# What ships: fitted on the measurements again, and put in place of the old.
calibration: $(FULL)/installed
	rm -rf build/calibration
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(FULL)/bin/nearpeak calibrate $(MEASUREMENTS) --name standard --jobs 2 \
		--out build/calibration
	cp build/calibration/*.json src/nearpeak/cost/data/

# The base environment: what `pip install nearpeak` brings, at pinned versions. No torch.
$(BASE)/installed: requirements/base.txt pyproject.toml
	$(PYTHON) -m venv $(BASE)
	$(BASE)/bin/pip install --quiet -r requirements/base.txt
	$(BASE)/bin/pip install --quiet --no-deps -e .
	touch $@

# The full environment. torch goes first, so that nothing that needs it brings another build of it.
$(FULL)/installed: requirements/base.txt requirements/test.txt pyproject.toml
	$(PYTHON) -m venv $(FULL)
	$(FULL)/bin/pip install --quiet "$$(grep '^torch==' requirements/test.txt)"
	$(FULL)/bin/pip install --quiet -r requirements/base.txt -r requirements/test.txt
	$(FULL)/bin/pip install --quiet --no-deps -e .
	touch $@

# What our search is measured against.
$(PEERS)/installed: requirements/peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet "$$(grep '^torch==' requirements/peers.txt)"
	$(PEERS)/bin/pip install --quiet -r requirements/peers.txt
	touch $@

# Pin what a fresh resolution of pyproject.toml gives today.
lock:
	tools/lock.sh $(PYTHON)

clean:
	rm -rf $(BASE) $(FULL) $(PEERS) build dist
