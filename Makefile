# Every target sets up what it needs: Python 3.11 or later, make and (for the inductor engine) a C++ compiler suffice.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# uv trusts the certificates that the machine does, such as those of an institute's proxy.
export UV_SYSTEM_CERTS := 1
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: demo test quick coverage lowest docs bench reliability check house pins workflows gpu-check gpu-kit format clean

demo: $(VENV)/.demo
	$(BIN)/painn-deploy demo

# Tests that compare times come last, with nothing beside them. Neighbours stay on one process, which makes what they share
# once.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not timing"
	$(BIN)/python -m pytest -m timing

# What to run while one writes: the modules of tests/quick.txt, each of which takes seconds.
QUICK := -n 2 -m "not slow and not timing and not gpu" @tests/quick.txt
quick: $(VENV)/.dev
	$(BIN)/python -m pytest $(QUICK) --durations=5

# The tests once more, and the lines that none of them reaches; those of processes that tests start are not counted.
coverage: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not timing" --cov --cov-report=term-missing

# The lowest versions that pyproject.toml allows, in an environment of their own, and the quick tests with them. They may
# warn of what newer versions of what they need themselves call outdated. Figures of conformers are those of the pinned RDKit.
# All other tests too: LOWEST='-n 2 -m "not timing"'
LOWEST ?= $(QUICK)
lowest: $(VENV)-lowest/.dev
	$(VENV)-lowest/bin/python -m pytest $(LOWEST) -o filterwarnings=default \
		--deselect tests/scripts/test_precision_study.py::test_figures_of_the_document_are_made_again

# The documentation as a site, in site/: a link to nothing, or a name that is not there, is an error.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build  # --quiet would let broken anchors pass

# figures of docs/performance.md, docs/batching.md and docs/dynamics.md for the student that ships, on a machine that does nothing else
bench: $(VENV)/.dev
	$(BIN)/python scripts/benchmark_inference.py student:base --output bench --radial-table
	$(BIN)/painn-deploy export student:base -o bench --overwrite
	$(BIN)/python scripts/benchmark_batching.py bench/student-base-onnxruntime-fp32.engine

# What must hold for long, in an hour or more, and the figures of docs/reliability.md; a run that was cut off goes on.
# RELIABILITY are its options, such as --stages rows --again.
RELIABILITY ?=
reliability: $(VENV)/.dev
	$(BIN)/python -m tests.endurance --output reliability --resume --document docs/reliability.md $(RELIABILITY)

check: $(VENV)/.dev workflows house
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What the tests alone can check of the source: who imports whom, docstrings, the changelog's day.
house: $(VENV)/.dev
	$(BIN)/python -m pytest -q tests/test_house.py tests/test_docstrings.py tests/test_changelog.py

# Files that GitHub reads, against their schemas.
SCHEMA := $(BIN)/check-jsonschema --builtin-schema
workflows: $(VENV)/.dev
	$(SCHEMA) vendor.github-workflows .github/workflows/*.yml
	$(SCHEMA) vendor.github-issue-forms .github/ISSUE_TEMPLATE/*.yml
	$(SCHEMA) vendor.dependabot .github/dependabot.yml
	$(SCHEMA) vendor.citation-file-format CITATION.cff

# Whether the pinned packages can be installed together, by the packages' own word: every extra with every Python that is
# allowed, and for the demo on macOS. What is installed here may not tell: a torch for CPUs alone asks for fewer packages than
# PyPI's. It asks the package index.
RESOLVE := $(BIN)/uv pip compile --quiet --constraint constraints.txt --output-file /dev/null pyproject.toml
pins: $(VENV)/.dev
	$(RESOLVE) --universal --python-version 3.11.5 --all-extras
	MACOSX_DEPLOYMENT_TARGET=14.0 $(RESOLVE) --python-platform aarch64-apple-darwin --python-version 3.12 \
		--extra cpu --extra export --extra plot

# On a machine with an NVIDIA GPU: builds, runs, compares and times every engine that can run there.
# GPU_PACKAGES are what that machine needs beside [dev], such as onnxruntime-gpu[cuda,cudnn]. It takes the place of
# onnxruntime: both go first, since they share one folder, and what one removal leaves of the other is broken.
# GPU_CHECK are its options, such as --resume.
GPU_PACKAGES ?=
GPU_CHECK ?=
gpu-check: $(VENV)/.dev
	$(if $(findstring onnxruntime-gpu,$(GPU_PACKAGES)),$(BIN)/python -m pip uninstall --quiet --yes onnxruntime onnxruntime-gpu)
	$(if $(GPU_PACKAGES),$(PIP) $(GPU_PACKAGES))
	$(BIN)/python scripts/gpu_check.py $(GPU_CHECK)

# Where there is a network: what an NVIDIA GPU machine without one lacks, in portions. KIT="--portion 56MiB --there FILE"
KIT ?=
gpu-kit: $(VENV)/.kit
	$(BIN)/python scripts/gpu_kit.py $(KIT)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VENV)-lowest build dist *.egg-info demo bench gpu-kit reliability site

# torch first: its pinned version decides which build of it is taken
$(VENV)/.torch: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or later is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) --editable ".[cpu,export,plot]"
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PIP) --editable ".[dev]"
	touch $@ $(VENV)/.demo $(VENV)/.docs

# uv alone knows how to take the lowest versions of what is named here, and the newest of what these need
$(VENV)-lowest/.dev: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info[:2] == (3, 11) else "The lowest versions have wheels for Python 3.11; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet uv
	$(VENV)-lowest/bin/uv pip install --quiet --python $(VENV)-lowest --resolution lowest-direct --editable ".[dev]"
	touch $@

$(VENV)/.docs: $(VENV)/.torch pyproject.toml
	$(PIP) --editable ".[docs]"
	touch $@

$(VENV)/.kit: $(VENV)/.torch pyproject.toml
	$(PIP) --editable ".[kit]"
	touch $@
