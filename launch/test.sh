#!/usr/bin/env bash
# Sets up .venv with the test extras and runs the CPU test suite in three processes, for many tests
# wait. Arguments go to pytest; -n 0 runs it in one.
source "$(dirname "$0")/setup.sh" "[test]"
exec .venv/bin/python -m pytest -m "not gpu" -n 3 --dist loadfile --no-loadscope-reorder "$@"
