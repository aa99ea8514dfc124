# Everything starts with `make setup`; the other targets call it first, which takes seconds once it is done.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
DATA ?=
WEIGHTS ?=
EPOCHS ?=
SIZE ?=
STUDY ?= .dev_scripts/studies/files/cifar10_scratch.py
OUT ?=
PYTEST = $(RUN) -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal

export VENV MM TORCH

.PHONY: help setup demo pipeline test test-all test-openmmlab bench study docs lint

help:
	@echo "make setup            virtual environment with torch, the MM toolboxes and orepa_mm (PYTHON=python3.12, VENV=, MM=onedl|openmmlab)"
	@echo "make demo             fine-tune, test, re-parameterize and time a small Mask R-CNN; report in work_dirs/demo/ (DATA=/path/to/coco-like,"
	@echo "                      WEIGHTS=checkpoint of the detector to start from, EPOCHS=, SIZE=longer side of the pictures in pixels)"
	@echo "make pipeline         pretrain on drawn data, transfer to detection and segmentation, test re-parameterized; report in work_dirs/pipeline/"
	@echo "make test             lint, and the test suite"
	@echo "make test-all         the test suite with the slow tests, and fifteen times as many random cases"
	@echo "make test-openmmlab   the test suite with the official OpenMMLab packages, in .venv-openmmlab"
	@echo "make bench            step, forward and memory ratios of none, DBB and OREPA: in the model, beside the optimizer, light, fixed scales"
	@echo "make docs             the documentation as a site, in site/"
	@echo "make study            compare methods over seeds, each at its own learning rate (STUDY=a file as in .dev_scripts/studies/files/, DATA=, OUT=)"
	@echo "make lint             ruff, codespell, import-linter (the layers in pyproject.toml) and mypy"

setup:
	@$(PYTHON) tools/setup_env.py

test: lint
	@$(PYTEST) -m "not slow"

test-all: setup
	@$(PYTEST) --hypothesis-profile thorough

test-openmmlab:
	@$(MAKE) --no-print-directory test MM=openmmlab VENV=.venv-openmmlab

demo: setup
	@$(RUN) demo/demo.py $(if $(DATA),--data '$(DATA)') $(if $(WEIGHTS),--load-from '$(WEIGHTS)') $(if $(EPOCHS),--epochs '$(EPOCHS)') \
		$(if $(SIZE),--size '$(SIZE)')

pipeline: setup
	@$(RUN) demo/pipeline.py

bench: setup
	@$(RUN) tools/benchmark.py

docs: setup
	@NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet --strict --site-dir site

study: setup
	@$(RUN) .dev_scripts/studies/compare_methods.py '$(STUDY)' $(if $(DATA),--data '$(DATA)') $(if $(OUT),--out '$(OUT)')

# Types are checked with the torch they were written for: what others call a mistake differs.
lint: setup
	@$(VENV)/bin/ruff check --quiet . && $(VENV)/bin/ruff format --quiet --check . && $(VENV)/bin/codespell
	@$(VENV)/bin/lint-imports --no-logo
	@$(if $(TORCH),,$(VENV)/bin/mypy --no-error-summary)
