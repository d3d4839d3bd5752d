# Sourced by the other scripts: makes .venv with the locked dependencies. $1: extras such as [test].
# PYTHON=python3.12 chooses the interpreter; an existing .venv is reused.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ ! -x .venv/bin/python ]; then
  "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "videogn needs Python 3.10 or newer; name one with PYTHON=python3.12 bash $0" >&2
    exit 2
  }
  "${PYTHON:-python3}" -m venv .venv
fi
# uv installs the same wheels as pip in a tenth of the time, and checks the lock's hashes. pip takes
# uv itself by its own lines of the lock: the pin and the hashes under it.
uv_lines=$(sed -n '/^uv==/,/[^\\]$/p' requirements.lock)
uv_version=$(sed -nE 's/^uv==([0-9.]+).*/\1/p' <<<"$uv_lines")
if [ "$(.venv/bin/uv --version 2>/dev/null | cut -d' ' -f2)" != "$uv_version" ]; then
  printf '%s\n' "$uv_lines" >.venv/uv.lock
  # An environment that uv made has no pip: Python brings one along, or uv itself is at hand.
  if .venv/bin/python -m pip --version >/dev/null 2>&1 ||
    .venv/bin/python -m ensurepip >/dev/null 2>&1; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
      -r .venv/uv.lock
  elif command -v uv >/dev/null; then
    uv pip install --quiet --python .venv/bin/python --require-hashes -r .venv/uv.lock
  else
    echo "videogn: .venv has no pip and there is no uv; remove .venv and run bash $0 again" >&2
    exit 2
  fi
fi
.venv/bin/uv pip install --quiet --python .venv/bin/python --constraints requirements.lock -e ".${1:-}"
