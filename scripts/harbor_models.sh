#!/usr/bin/env bash
# The models of Harbor, in a virtual environment of their own: they need Python 3.12, and of Harbor's packages only these.
#
#   scripts/harbor_models.sh DIRECTORY
#
# HARBOR_PYTHON names a python; else the first of 3.12 and later that is found.
set -euo pipefail
directory=$1

for candidate in ${HARBOR_PYTHON:-} python3.13 python3.12 python3 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[23]*/bin/python; do
  if "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
[ -n "${python:-}" ] || { echo "harbor_models: no Python of 3.12 or later is found; name one by HARBOR_PYTHON" >&2; exit 1; }

rm -rf "$directory"
"$python" -m venv "$directory"
pip=("$directory/bin/python" -m pip install --quiet --disable-pip-version-check ${PIP_OPTIONS:-})
"${pip[@]}" pydantic==2.14.4
"${pip[@]}" --no-deps harbor==0.26.0 toml==0.10.2 shortuuid==1.0.13 pathspec==1.1.1 packaging==26.4 \
  platformdirs==4.14.8
touch "$directory/.installed"
