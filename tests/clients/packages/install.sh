#!/usr/bin/env bash
# install.sh DIRECTORY: installs the clients that `make test-clients` runs, of the versions of package-lock.json, into
# DIRECTORY (450 MB), and from apt what is missing of tmux, node and npm. CODEX_NEWEST=1: the newest codex as well, into
# DIRECTORY/newest.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
place=$1

declare -A package=([tmux]=tmux [node]=nodejs [npm]=npm)
missing=()
for program in tmux node npm; do
  command -v "$program" >/dev/null || missing+=("${package[$program]}")
done
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "install.sh: missing: ${missing[*]}; install them, e.g. apt-get install ${missing[*]}" >&2
    exit 1
  fi
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi
node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' \
  || { echo "install.sh: node $(node --version) is too old, expected 20 or newer" >&2; exit 1; }

mkdir -p "$place"
if ! cmp -s "$here/package-lock.json" "$place/installed-lock.json"; then
  cp "$here/package.json" "$here/package-lock.json" "$place"
  npm ci --prefix "$place" --no-audit --no-fund --loglevel error
  cp "$here/package-lock.json" "$place/installed-lock.json"
fi
if [ -n "${CODEX_NEWEST:-}" ]; then
  npm install --prefix "$place/newest" --no-save --no-audit --no-fund --loglevel error @openai/codex@latest
fi
