# make run    set-up and the main job: a teacher distilled into a tiny student
# make test   set-up and the fast tests; make test-slow: the others
# make onnx   ONNX files for an export: make onnx OUTPUT=FOLDER
# make setup  set-up alone; PYTHON=python3.12 takes another interpreter

PYTHON ?= python3
BIN = .venv/bin

.PHONY: run setup test test-slow lint sonyc onnx clean

run: .venv/installed
	$(BIN)/python run.py --config=configs/iusp.py:demo

setup: .venv/installed

test: .venv/installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow'

test-slow: .venv/installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# SONYC-UST, for those who have the recordings or can download a few GB.
sonyc: .venv/installed
	$(BIN)/python run.py --config=configs/iusp.py:sonyc_ust

# ONNX files for an export: make onnx OUTPUT=exported
onnx: .venv/installed
	@test -n "$(OUTPUT)" || { echo "make onnx OUTPUT=FOLDER, of iusp export"; exit 1; }
	$(BIN)/python -m iusp_jax.deploy.onnx_commands "$(OUTPUT)" | sh -ex

# An environment that has no pip, of an interrupted or another tool's making, is
# completed: what is there is kept.
.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	  || { echo "$(PYTHON) is not Python 3.11 to 3.13: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "$(PYTHON) makes no environment with pip\
	  (on Debian: apt install python3-venv); see above"; exit 1; }

.venv/installed: requirements.txt | .venv/bin/pip
	$(BIN)/python -m pip install -q -r requirements.txt
	@touch $@

.venv/installed-dev: requirements.txt requirements-dev.txt \
  requirements-converter.txt | .venv/bin/pip
	$(BIN)/python -m pip install -q -r requirements-dev.txt
	$(BIN)/python -m pip install -q --no-deps -r requirements-converter.txt
	@touch $@ .venv/installed

clean:
	rm -rf .venv .venv-onnx .jax_cache runs
