# make train   install into .venv and train on the built-in set
# make test    install into .venv and run the test suite
# make test-sanitize   the kernel tests on a CPU library built with AddressSanitizer and UBSan (gcc)
# make test-hard       attacks of a quarter of an hour: fuzzed calls, damaged files, kills, signals, two runs
# make bench   benchmarks against what one would write instead, into build/benchmarks.json
# make bench-check     the stated ratios of benchmarks/floors.yaml, in a short run that fails where one does not hold
# make lint    format, lint and type checks
# make docs    write docs/api.md from the docstrings
# make clean   remove what was built (keeps the packages in .venv, and runs)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE := $(wildcard csrc/*/* build_backend/*.py)

# The build sees the same versions as the environment, under build isolation too. pip and uv split this at spaces,
# which the path of this folder may have.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := $(PIP_CONSTRAINT)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: train test test-sanitize test-hard bench bench-check lint docs clean
.DELETE_ON_ERROR:

train: $(VENV)/.installed
	$(BIN)/python -m snnet.train $(ARGS)

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses auto --dist worksteal $(ARGS)

# A build of its own, beside the installed one; its packages come first because pytest starts in its folder.
# Leaks are not looked for: Python and torch keep memory until the process ends.
SANITIZED := build/sanitize
test-sanitize: $(VENV)/.installed
	rm -rf $(SANITIZED)/lib
	SNNET_CPU=1 SNNET_CUDA=0 SNNET_SANITIZE=1 $(BIN)/python setup.py --quiet build --build-temp $(SANITIZED)/temp \
	  --build-lib $(SANITIZED)/lib
	cd $(SANITIZED)/lib && LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 "$(CURDIR)/$(BIN)/python" -m pytest \
	  --import-mode=append -p no:cacheprovider "$(CURDIR)/tests/kernels" $(ARGS)

test-hard: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.hard $(ARGS)

bench: $(VENV)/.installed
	mkdir -p build
	$(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-json=build/benchmarks.json $(ARGS)

bench-check: $(VENV)/.installed
	$(BIN)/python -m benchmarks.check $(ARGS)

lint: $(VENV)/.lint-tools
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs:
	$(PYTHON) scripts/api_reference.py

# torch and what builds come first: the build uses them here, and no copies of its own. The install is editable:
# what runs is this checkout, and compiled libraries lie beside their sources.
$(VENV)/.installed: pyproject.toml setup.py constraints.txt $(NATIVE)
	@echo 'installing torch and the rest into $(VENV): some GB, some minutes'
	$(PYTHON) -m venv $(VENV)
	scripts/install.sh $(VENV) torch torchvision 'setuptools>=77' ninja pybind11
	@echo 'compiling the kernels; where nvcc is found also those for GPUs, some minutes (SNNET_CUDA=0 leaves them out)'
	SNNET_CPU=$${SNNET_CPU:-1} scripts/install.sh $(VENV) --no-build-isolation --editable '.[test,bench]'
	touch $@

$(VENV)/.lint-tools: $(VENV)/.installed
	scripts/install.sh $(VENV) ruff mypy types-PyYAML types-tqdm
	touch $@

clean:
	rm -rf build dist *.egg-info snnet/*.so snnet_kernels/*.so $(VENV)/.installed $(VENV)/.lint-tools
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
