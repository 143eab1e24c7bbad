# Every target does its own set-up; `make help` lists them. Thin over the command line: nothing here is logic.
#   make PYTHON=python3.12 test     another interpreter
#   make VENV=/path/to/venv test    another place for the virtual environment

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.installed
# What travels to a board: Python 3.8.
BOARD := $(wildcard tinkit/*.py) tinkit/device

DEMO ?= demo
DEMO_TEACHER := --teacher efficientnet-lite0 --teacher-size 128
DEMO_STUDENT := --student mobilenetv4_conv_small --student-size 96
DEMO_TRAINING := --epochs 10 --batch-size 64 --views 2

TINKIT := $(BIN)/tinkit
include tinkit/jetson.mk
jetson jetson-doctor jetson-clocks jetson-matrix: $(STAMP)

.PHONY: help setup test test-all check format demo bench clean

help: ## list the targets (the default)
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

setup: $(STAMP) ## virtual environment in .venv with all that tests and demo need

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "tinkit needs Python 3.10 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "python3 lacks venv; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Installing into $(VENV): torch is large, this takes some minutes the first time"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e ".[host,cpu,dev]"
	@touch $@

test: $(STAMP) ## the quick tests: under 8 minutes, no root, no GPU, no network
	$(BIN)/python -m pytest -m "not slow"

test-all: $(STAMP) ## all tests that this machine can run
	$(BIN)/python -m pytest

check: $(STAMP) ## format, lint, types, and Python 3.8 for what travels to a board
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/vermin --quiet --no-tips --eval-annotations --violations --target=3.8- --exclude tomllib $(BOARD)

format: $(STAMP) ## put the code into its format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

demo: $(STAMP) ## the whole road on photographs that are already here: about 10 minutes on 2 cores
	$(BIN)/python -m tinkit.host.demo_pictures $(DEMO)/photos
	cd $(DEMO) && $(BIN)/tinkit distill photos $(DEMO_TEACHER) $(DEMO_STUDENT) $(DEMO_TRAINING)
	cd $(DEMO) && $(BIN)/tinkit evaluate --limit 500
	cd $(DEMO) && $(BIN)/tinkit export --target trt-fp16
	cd $(DEMO) && $(BIN)/tinkit profile
	@report=$$(ls -t $(abspath $(DEMO))/runs/*/report-*/report.html | head -n 1); echo "The report is in $$report"

bench: $(STAMP) ## the benchmark of the whole road (takes long; DATA=folder with the PACS shards)
	$(BIN)/python benchmarks/road.py $(or $(DATA),../shared/data)

clean: ## remove what was built and the demo; keeps runs/
	rm -rf $(VENV) $(DEMO) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
