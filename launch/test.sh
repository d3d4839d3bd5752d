#!/usr/bin/env bash
# Sets up .venv with the test extras and runs the CPU test suite in three processes of one thread each,
# which keep two cores busy: many tests wait. Arguments go to pytest; -n 0 runs it in one process.
source "$(dirname "$0")/setup.sh" "[test]"
# Dozens of processes start: where Python may keep no bytecode, each compiles all of torch again.
unset PYTHONDONTWRITEBYTECODE
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec .venv/bin/python -m pytest -m "not gpu" -n 3 --dist loadfile --no-loadscope-reorder "$@"
