#!/usr/bin/env bash
# The demo and the quick tests on a bare Debian 12, in containers: as root, and as a plain user.
#
# Two images: one with python3, python3-venv and make alone, where git is missing and must be said to be, and one with
# git besides. They are made by debootstrap (BARE_MIRROR names a mirror other than its own). Packages for Python come
# as this machine's pip gets them, beforehand: the containers have no network. Images and packages are kept in
# ~/.cache/codex-pool/bare until what they are made of changes; all else is removed at the end.
set -euo pipefail
cd "$(dirname "$0")/.."

SUITE=bookworm
PYTHON_VERSION=3.11.2
PACKAGES=python3,python3-venv,make
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/codex-pool/bare
PIP=${PYTHON:-python3}

fail() {
  echo "test-bare: $*" >&2
  exit 1
}

[ "$(id -u)" = 0 ] || fail "is for root: it makes a Debian by debootstrap, and containers with limits of their own"
for tool in podman runc debootstrap flock; do
  command -v "$tool" >/dev/null || fail "$tool is not installed; install it, e.g. apt-get install podman runc debootstrap util-linux"
done
"$PIP" -m pip --version >/dev/null || fail "$PIP has no pip; name a python that has, by PYTHON"

mkdir -p "$CACHE"
exec 9>"$CACHE/lock"
flock -w 900 9 || fail "another one runs; see $CACHE/lock"

work=$(mktemp -d /var/tmp/codex-pool-bare.XXXXXX)
container=codex-pool-bare-$$
# A storage of its own; runc, and cgroupfs, work in more places than what podman takes by itself.
podman=(
  podman --root "$CACHE/storage" --runroot "$CACHE/run"
  --cgroup-manager cgroupfs --runtime "$(command -v runc)"
)
clean() {
  # shellcheck disable=SC2046 - one or two builds
  kill $(jobs -p) 2>/dev/null || true
  "${podman[@]}" rm --force --time 0 --ignore "$container" >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap clean EXIT
trap 'exit 130' INT TERM HUP

. scripts/debian_image.sh
# Those of other makings are removed.
build bare "$PACKAGES" & first=$!
build git "$PACKAGES,git" & second=$!
wait "$first"
wait "$second"
for old in $("${podman[@]}" images --format '{{.Repository}}:{{.Tag}}'); do
  case ${old##*/} in "$(image bare "$PACKAGES")" | "$(image git "$PACKAGES,git")") ;; *) "${podman[@]}" rmi --force "$old" >/dev/null ;; esac
done

wheels=$CACHE/wheels-$({ echo "$PYTHON_VERSION"; cat pyproject.toml constraints.txt; } | sha256sum | cut -c1-12)
if [ ! -d "$wheels" ]; then
  echo "== packages for Python $PYTHON_VERSION"
  rm -rf "$CACHE"/wheels-*
  "$PIP" -m pip download --quiet --disable-pip-version-check --dest "$wheels.partial" --only-binary :all: \
    --python-version "$PYTHON_VERSION" --constraint constraints.txt '.[test]' 'hatchling>=1.25' editables
  mv "$wheels.partial" "$wheels"
fi

# The checkout as it is now, without what git leaves out.
mkdir "$work/checkout"
git -c safe.directory='*' ls-files -z --cached --others --exclude-standard --deduplicate | while IFS= read -r -d '' file; do
  if [ -e "$file" ] || [ -L "$file" ]; then printf '%s\0' "$file"; fi
done | tar --null --files-from - --create | tar -C "$work/checkout" --extract --no-same-owner

inside() { # IMAGE USER STEP
  timeout --foreground 900 "${podman[@]}" run --rm --name "$container" --network none --user "$2" --workdir /home/tester/checkout \
    --ulimit nofile=1024:1024 --ulimit nproc=1000:1000 \
    --volume "$work/home-$2:/home/tester" --volume "$wheels:/wheels:ro" \
    --env HOME=/home/tester --env PIP_NO_INDEX=1 --env PIP_FIND_LINKS=/wheels \
    "$1" sh scripts/bare_steps.sh "$3"
}
for user in 0 1000; do
  mkdir "$work/home-$user"
  cp -r "$work/checkout" "$work/home-$user/checkout"
  chown -R "$user:$user" "$work/home-$user"
  inside "$(image bare "$PACKAGES")" "$user" without-git
  inside "$(image git "$PACKAGES,git")" "$user" with-git
  rm -rf "$work/home-$user"
done
echo "== test-bare: all as it should be, in $SECONDS s"
