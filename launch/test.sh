#!/usr/bin/env bash
# Sets up .venv with the test extras and runs the CPU test suite. Arguments go to pytest.
source "$(dirname "$0")/setup.sh" "[test]"
exec .venv/bin/python -m pytest -m "not gpu" "$@"
