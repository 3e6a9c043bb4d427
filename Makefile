# Two commands are all: `make workbook` and `make test`. Each sets up .venv first where that is missing.
PYTHON ?= python3
MODEL ?= tiny
PROFILE ?= quick
RESULTS ?= $(abspath $(or $(BENCHLIB_RESULTS),results))
NOTEBOOKS ?= $(wildcard notebooks/*.ipynb)
BIN := .venv/bin
# The kernel of .venv, also where the user has a python3 kernel of their own.
export JUPYTER_PREFER_ENV_PATH = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: setup workbook test check lock lab slow chaos soak truth coverage answers serving policies gpu live reference

setup: .venv/ready
	@$(BIN)/python -c 'from importlib.metadata import version as v; print(".venv is ready, with torch", v("torch"))'

# Every package but torch comes with its hash. It is installed first, so that torch brings only its own CUDA packages.
# A torch that is in .venv already is kept if it is in range: a CUDA build, say, that was installed first.
.venv/ready: requirements.txt requirements-hashed.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	@test -x $(BIN)/python || { echo "Making .venv"; $(PYTHON) -m venv .venv; }
	@echo "Installing some 190 packages"
	@$(BIN)/pip install --quiet --no-deps --require-hashes -r requirements-hashed.txt
	@$(BIN)/python -c 'from importlib.metadata import version as v; assert tuple(map(int, v("torch").split(".")[:2])) >= (2, 6)' 2> /dev/null \
	  || { echo "Installing torch"; $(BIN)/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $$(grep '^torch==' requirements.txt); }
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

# The hashes of requirements.txt, made anew. torch is left out: its builds differ by index. This needs no .venv.
lock:
	@test -x build/lock/bin/uv || { $(PYTHON) -m venv build/lock; build/lock/bin/pip install --quiet uv==0.13.9; }
	@echo torch > build/lock/excludes.txt
	build/lock/bin/uv pip compile requirements.txt --output-file requirements-hashed.txt --quiet --universal --python-version 3.11 \
	  --generate-hashes --excludes build/lock/excludes.txt --custom-compile-command "make lock"

# Every notebook runs, also after one that failed; what failed keeps its partial output and makes the status non-zero.
workbook: .venv/ready
	@status=0; for notebook in $(NOTEBOOKS); do \
	  name=$$(basename $$notebook .ipynb); folder="$(RESULTS)/$${name#*_}"; mkdir -p "$$folder"; \
	  echo "Running $$notebook with the $(MODEL) model"; log="$$folder/$$name.log"; began=$$(date +%s); \
	  $(BIN)/papermill $$notebook "$$folder/$$name.ipynb" --kernel python3 --no-progress-bar --log-output \
	    -p model $(MODEL) -p profile $(PROFILE) -p results_dir "$(RESULTS)" $(if $(BUDGET_MIN),-p budget_min $(BUDGET_MIN)) > "$$log" 2>&1 \
	    || { status=1; echo "FAILED: $$notebook: $$(grep . "$$log" | tail -n 1) (all it said: $$log)"; }; \
	  $(BIN)/python -m benchlib page "$$folder/$$name.ipynb" || status=1; \
	  echo "Look at $$folder/$$name.html ($$(($$(date +%s) - began)) s)"; \
	done; \
	$(BIN)/python -m benchlib report --results "$(RESULTS)" || status=1; exit $$status

test: .venv/ready
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

slow: .venv/ready
	$(BIN)/pytest -m slow

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Kills, faults, odd requests, stops: what is survived, in less than 10 minutes; CHAOS="--quick" for a look.
chaos: .venv/ready
	$(BIN)/python -m benchmarks.chaos "$(RESULTS)/chaos" $(CHAOS)

# Half an hour of mixed requests with planted faults, every one accounted for; SOAK="--minutes 3" for less.
soak: .venv/ready
	$(BIN)/python -m benchmarks.soak "$(RESULTS)/chaos" $(SOAK)

# The load generator against a server that keeps its own record, and the intervals against simulated truth.
truth: .venv/ready
	$(BIN)/python benchmarks/truth.py

coverage: .venv/ready
	$(BIN)/python benchmarks/interval_coverage.py
	$(BIN)/python benchmarks/compare_power.py

# Foretold answers against simulated truth, and planted faults; ANSWERS="--quick" for a look in a minute or two.
answers: .venv/ready
	$(BIN)/python -m benchmarks.answers $(ANSWERS)

# The server against the stock pipeline and other servers; PARTS="one mixed" for some, LitServe by its extra alone.
serving: .venv/ready
	$(BIN)/python -m benchmarks.serving $(PARTS)

# Serial, dynamic and continuous batching, simulated: does continuous ever lose?
policies: .venv/ready
	$(BIN)/python benchmarks/policies.py

# Full-size SDXL on a GPU, in parts of 9 minutes that go on where they stopped; GPU="--part latency" for one, or "--table".
gpu: .venv/ready
	$(BIN)/python -m benchmarks.gpu --results "$(RESULTS)/gpu" $(GPU)

# The live line of a run: is it seen in what is measured?
live: .venv/ready
	$(BIN)/python -m benchmarks.live_line

# What README shows, anew: a workbook of the tiny model on a machine with nothing else to do, kept small for git.
reference: .venv/ready
	rm -rf build/reference
	$(MAKE) workbook MODEL=tiny PROFILE=quick RESULTS="$(CURDIR)/build/reference"
	$(BIN)/python -m benchmarks.reference build/reference results/reference-cpu

# JupyterLab works on copies, so that the notebooks of the repository stay as they are. A copy that
# is there is kept: it may hold somebody's work. LAB="--no-browser --port 8899" passes options on.
lab: .venv/ready
	@mkdir -p my_notebooks; for notebook in notebooks/*.ipynb; do \
	  copy=my_notebooks/$$(basename $$notebook); \
	  if [ ! -e $$copy ]; then cp $$notebook $$copy; \
	  elif [ $$notebook -nt $$copy ]; then echo "$$copy is older than $$notebook; delete it to get the new one"; fi; \
	done
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB) my_notebooks
