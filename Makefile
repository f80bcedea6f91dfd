# Two commands for people: `make demo` and `make test`. Each makes .venv and installs what it needs, once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test lint unit docs oracles bench fuzz clean

demo: $(VENV)/.demo  ## train a small model on the Python manual and let it speak: offline, about two minutes
	$(BIN)/lathe demo

test: lint unit  ## everything that must hold: style, types, floors, tests

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Many processes are started: what Python compiles is kept, even where the environment says otherwise.
unit: $(VENV)/.test .venv-openai2/.made  ## as many files at once as there are cores, in the order of tests/conftest.py
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# torch goes in first and alone: its version is pinned to one whose build for the CPU is small.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Lathe needs Python 3.10 or newer") if sys.version_info < (3, 10) else 0'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint constraints.txt torch
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) install --constraint constraints.txt --editable '.[plot]'
	touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(PIP) install --constraint constraints.txt --editable '.[plot,test]'
	touch $@

docs: $(VENV)/.test  ## the site, in site/, offline; anything amiss in it is an error
	$(BIN)/mkdocs build --strict --quiet

# The previous major of OpenAI's client, in a folder of its own, which its tests put before the current one.
.venv-openai2/.made: $(VENV)/.test
	$(PIP) install --target .venv-openai2 --upgrade openai==2.54.0
	touch $@

# Programs whose files we must read and write as they do: litgpt pins old packages, llama.cpp must be compiled, so each
# has an environment of its own, in which the tests run scripts.
oracles: $(VENV)/.test .venv-litgpt/.made .venv-llamacpp/.made .venv-llamaserver/.made .venv-ray/.made  ## against LitGPT, llama.cpp and Ray themselves
	$(BIN)/python -m pytest -n auto --dist worksteal tests/oracles
	LATHE_CASES=2000 $(BIN)/python -m pytest tests/test_wire_openai_fuzz.py

.venv-litgpt/.made: constraints.txt
	$(PYTHON) -m venv .venv-litgpt
	.venv-litgpt/bin/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt torch
	.venv-litgpt/bin/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt litgpt==0.5.13 sentencepiece requests litserve==0.2.19
	touch $@

.venv-llamacpp/.made:
	$(PYTHON) -m venv .venv-llamacpp
	.venv-llamacpp/bin/python -m pip --disable-pip-version-check --quiet install --no-binary llama-cpp-python llama-cpp-python==0.3.36
	touch $@

# What llama.cpp's own tests of its server need, and the source that they are in.
.venv-llamaserver/.made:
	$(PYTHON) -m venv .venv-llamaserver
	.venv-llamaserver/bin/python -m pip --disable-pip-version-check --quiet install pytest requests wget openai==2.54.0
	.venv-llamaserver/bin/python -m pip --disable-pip-version-check --quiet download --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.35 --dest .venv-llamaserver
	touch $@

# Ray, and all that the tests' own environment holds, which Ray's many packages leave as it is.
.venv-ray/.made: $(VENV)/.test
	$(PYTHON) -m venv .venv-ray
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > .venv-ray/others.pth
	.venv-ray/bin/python -c "import shutil, site; shutil.copy('.venv-ray/others.pth', site.getsitepackages()[0])"
	.venv-ray/bin/python -m pip --disable-pip-version-check --quiet install "ray[serve,train]==2.60.0"
	touch $@

bench: $(VENV)/.test .venv-litgpt/.made .venv-llamacpp/.made  ## Lathe beside its peers, an hour or so, into docs/benchmarks.md; BENCH="--quick 15M" for less
	$(BIN)/python benchmarks/all.py $(BENCH)

fuzz: $(VENV)/.test  ## a hundred thousand damaged checkpoints; only errors of ours may come of them
	$(BIN)/python tests/fuzz.py 100000

clean:
	rm -rf $(VENV) .venv-* build dist out site
