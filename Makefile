# The two commands: `make run` trains the quickstart, `make test` passes the tests.
# `make test-all` runs the slow tests, too: every cell, estimator and kind of run.
# `make torture` kills each of eight kinds of work 34 times, at times and file operations drawn by
# lot, cuts its power 34 times, lets file operations fail, and gives 10,000 spoilt files to readers.
# `make mutants` plants one bug at a time, and sees its test fail; `make mutants M="beam cache"`
# plants those whose file or description holds a word.
# `make fuzz` searches for bytes that break a reader of files; `make fuzz R="glove text"` for some.
# `make docs` builds the documentation site, docs/_build/html.
# T picks tests: `make test T=gradients`, `make test T=data/test_bpe.py`, `make test T="-k word"`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
T ?=
M ?=
R ?=

.PHONY: run test test-all test-extras torture fuzz mutants check docs bench clean

run: $(VENV)/.installed
	$(BIN)/python run.py train quickstart

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(if $(filter -%,$(T)),$(T),$(addprefix tests/,$(T)))

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not extras" $(if $(filter -%,$(T)),$(T),$(addprefix tests/,$(T)))

test-extras: $(VENV)/.installed-extras
	$(BIN)/python -m pytest -n 0 -m extras tests/sweeps tests/track

torture: $(VENV)/.installed-dev
	LM_JAX_CASES=10000 $(BIN)/python -m pytest -n 0 tests/training/test_hostile.py
	$(BIN)/python -m pytest -n 0 -m "" tests/training/test_faults.py
	LM_JAX_KILLS=34 $(BIN)/python -m pytest -n 0 -m "" tests/training/test_kills.py
	LM_JAX_CUTS=34 $(BIN)/python -m pytest -n 0 -m "" tests/training/test_power.py

fuzz: $(VENV)/.installed-fuzz
	$(BIN)/python tests/fuzz.py 60 $(R)

mutants: $(VENV)/.installed-dev
	$(BIN)/python tests/mutants.py $(M)

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -W --keep-going --quiet docs docs/_build/html
	@echo docs/_build/html/index.html

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks.all

# An editable install: the environment finds lm_jax and the command lm-jax from any folder.
$(VENV)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("lm_jax needs Python 3.11 or newer, not " + sys.version.split()[0] + ": make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	@echo "installing lm_jax, JAX and what else requirements.txt names into $(VENV): a minute or two"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt requirements-docs.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

$(VENV)/.installed-extras: $(VENV)/.installed-dev requirements-sweeps.txt requirements-track.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-sweeps.txt -r requirements-track.txt
	touch $@

$(VENV)/.installed-fuzz: $(VENV)/.installed-dev requirements-fuzz.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-fuzz.txt
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed requirements-docs.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed benchmarks/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	touch $@

clean:
	rm -rf $(VENV)
