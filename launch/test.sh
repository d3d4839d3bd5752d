#!/usr/bin/env bash
# Sets up .venv with the test extras and runs the CPU test suite in two processes of one thread each:
# threads of both would wait for each other. Arguments go to pytest; -n 0 runs it in one process.
source "$(dirname "$0")/setup.sh" "[test]"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec .venv/bin/python -m pytest -m "not gpu" -n 2 --dist loadfile --no-loadscope-reorder "$@"
