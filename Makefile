# Set-up and the few commands of everyday work. Each target first brings .venv up to what it needs;
# the stamps in .venv say what was installed, so that a second call goes straight to its job.

PYTHON ?= python3
# Tests to run; `make test TESTS=` runs the slow ones too, EXTRAS=,ray those of Ray (400 MB).
TESTS ?= -m "not slow"
EXTRAS ?=
# Of `make benchmark`: ARGS=--short compares and times nothing, ARGS='--only descent' is one section.
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.installed-
SOURCES := pyproject.toml constraints.txt
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: run paper test lint docs benchmark clean
.DELETE_ON_ERROR:

run: $(STAMPS)data
	@$(BIN)/python -m experiments.train +experiment=quickstart

# Every figure and table of the paper, and a table of claims; what is there already is not computed again.
PAPER := outputs/paper
STUDIES := certificate_tightness,descent_to_flow,digits,faces,optimizers,rank_deficient_rate,saddle_to_saddle,step_size
paper: $(STAMPS)data
	@$(BIN)/python -m experiments.train -m +experiment=paper_convergence report=never hydra.sweep.dir=$(PAPER)/convergence
	@$(BIN)/python -m experiments.train -m +experiment=$(STUDIES) report=never \
		hydra.sweep.dir=$(PAPER)/studies 'hydra.sweep.subdir=$${hydra.runtime.choices.experiment}'
	@test -e $(PAPER)/hessians/findings.json || \
		$(BIN)/python -m experiments.landscape +experiment=paper_hessians report=never hydra.run.dir=$(PAPER)/hessians
	@$(BIN)/python -m experiments.report $(PAPER) --claims

test: $(STAMPS)test
	@$(BIN)/python -m pytest -q $(TESTS)

lint: $(STAMPS)dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# Not --quiet: MkDocs would not count the warnings that it does not say.
docs: $(STAMPS)docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "The site is in site/: open site/index.html, or python -m http.server -d site for its search, too"

# Beside peers, on a machine with nothing else to do: about an hour.
benchmark: $(STAMPS)benchmarks
	@$(BIN)/python -m benchmarks.suite $(ARGS)

clean:
	@rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(STAMPS)venv:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "bwdln takes Python 3.11 to 3.13; name one: make PYTHON=python3.12 …"; exit 1; }
	@echo "Creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# A larger set of extras contains the smaller ones and marks them as installed, too.
$(STAMPS)data: $(SOURCES) | $(STAMPS)venv
	@echo "Installing into $(VENV): about a minute, once"
	@$(INSTALL) '.[data]'
	@touch $@

$(STAMPS)test: $(SOURCES) | $(STAMPS)venv
	@echo "Installing into $(VENV), with what the tests need: about a minute, once"
	@$(INSTALL) '.[data,test$(EXTRAS)]'
	@touch $(STAMPS)data $@

$(STAMPS)dev: $(SOURCES) | $(STAMPS)venv
	@echo "Installing into $(VENV), with what the tests and checks need: about a minute, once"
	@$(INSTALL) '.[data,test,dev]'
	@touch $(STAMPS)data $(STAMPS)test $@

$(STAMPS)docs: $(SOURCES) | $(STAMPS)venv
	@echo "Installing into $(VENV) what the site needs: about a minute, once"
	@$(INSTALL) '.[docs]'
	@touch $@

$(STAMPS)benchmarks: $(SOURCES) | $(STAMPS)venv
	@echo "Installing into $(VENV) the peers to measure against: a few minutes, once"
	@$(INSTALL) '.[data,benchmarks]'
	@touch $(STAMPS)data $@
