# Everything a fresh Debian or Ubuntu machine needs: `make demo` runs the main job, `make test` passes the tests.
# Both create .venv, install Python dependencies into it and the Debian packages they need (or name them).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEBIAN_PACKAGES := gcc libc6-dev binutils gcc-aarch64-linux-gnu libc6-dev-arm64-cross binutils-arm-linux-gnueabihf qemu-user \
	openssh-server openssh-client
# What only tests need: whole emulated machines, broken networks, Android's shell, a browser that looks at reports.
TEST_PACKAGES := qemu-system-arm e2fsprogs iproute2 mksh toybox chromium llvm-19
STAMP := $(VENV)/.installed

.PHONY: demo test test-full lint setup packages test-packages clean

demo: setup
	$(BIN)/python examples/demo.py

test: test-packages setup
	$(BIN)/python tests/run_groups.py

test-full: test-packages setup
	$(BIN)/python tests/run_groups.py --full

lint: setup
	$(BIN)/python tests/run_groups.py lint

setup: packages $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "bevel needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV) || { echo "python3-venv is missing: apt-get install python3-venv" >&2; exit 4; }
	$(BIN)/python -m pip install --quiet --editable '.[dev,peers,cross]'
	touch $@

packages:
	@PACKAGES="$(DEBIAN_PACKAGES)" sh .ci/packages

test-packages:
	@PACKAGES="$(DEBIAN_PACKAGES) $(TEST_PACKAGES)" sh .ci/packages

clean:
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo-out
