# On a bare clone, with nothing but python3 >= 3.10: `make demo` tracks and scores a clip that ships with fastsam2 (runtime packages only);
# `make test` is environment, ruff, mypy, pytest.
PYTHON ?= python3
# On a CUDA machine name the build to use, for example: make test TORCH=torch==2.9.1
TORCH ?= torch==2.13.0
SAM2 ?= sam2==1.1.0
# An oracle of scores in tests; it would bring opencv-python beside opencv-python-headless.
VOS_BENCHMARK ?= vos-benchmark==0.1.0
PYTEST_ARGS ?=
# What tests of the C++ library need from Debian or Ubuntu; without it they skip, and say so.
APT_PACKAGES := tests/cpp/apt-packages.txt
APT := apt-get -qq -o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 -o DPkg::Lock::Timeout=20
# Test processes side by side, one thread each.
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
STAMP := $(VENV)/.installed
CHECK_PYTHON := $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "fastsam2 needs Python >= 3.10, got " + sys.version)'

DEMO_VENV := .venv-demo
DEMO_STAMP := $(DEMO_VENV)/.installed
DEMO_OUT ?= out/demo
DEMO_ARGS ?=

.PHONY: demo test lint lint-cpp types wheel clean system-packages
.DELETE_ON_ERROR:

test: lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder -m 'not slow' --durations=15 $(PYTEST_ARGS)

demo: $(DEMO_STAMP)
	$(DEMO_VENV)/bin/fastsam2 demo --out '$(DEMO_OUT)' $(DEMO_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .

# Every check of clang-tidy over the C++ library; takes minutes.
lint-cpp: $(STAMP)
	FASTSAM2_TIDY=all $(BIN)/python -m pytest -q tests/cpp/test_static_analysis.py

# Never fails: where packages cannot be had, the tests that need them skip.
system-packages:
	@missing=$$(for p in $$(cat $(APT_PACKAGES)); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then echo "C++ tests will skip, not installed:" $$missing; exit 0; fi; \
	log=$$(mktemp); \
	export DEBIAN_FRONTEND=noninteractive; install="$(APT) install --yes --no-install-recommends"; \
	{ timeout 25 $(APT) update && timeout 40 $$install --download-only $$missing && $$install $$missing; } >$$log 2>&1 || \
		{ echo "C++ tests may skip, could not be installed:" $$missing; tail -n 3 $$log; }; \
	rm -f $$log

types: $(STAMP)
	$(BIN)/mypy

wheel: $(STAMP)
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .

clean:
	rm -rf $(VENV) $(DEMO_VENV) build dist .mypy_cache .pytest_cache .ruff_cache

# No extras: neither torch nor sam2.
$(DEMO_STAMP): pyproject.toml Makefile
	$(CHECK_PYTHON)
	$(PYTHON) -m venv $(DEMO_VENV)
	$(DEMO_VENV)/bin/python -m pip --disable-pip-version-check --quiet install --editable .
	touch $@

# torch comes first and sam2 without dependencies: a plain `pip install sam2` brings torchvision, which does not import beside a CPU
# build of torch (pip then complains that sam2 lacks it: that is the point). sam2 is a source package whose build imports torch; without
# its CUDA extension it is plain Python.
$(STAMP): pyproject.toml Makefile
	$(CHECK_PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip setuptools wheel
	$(PIP) install '$(TORCH)'
	SAM2_BUILD_CUDA=0 $(PIP) install --no-deps --no-build-isolation '$(SAM2)'
	$(PIP) install --editable '.[dev]'
	$(PIP) install --no-deps '$(VOS_BENCHMARK)'
	touch $@
