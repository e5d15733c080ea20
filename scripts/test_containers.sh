#!/usr/bin/env bash
# The tests of samples in containers, in podman, with a storage of their own.
#
#     scripts/test_containers.sh PYTEST...
#
# The image is a Debian 12 with python3 and without git, made by debootstrap (BARE_MIRROR names a mirror other than its
# own). It is kept in ~/.cache/codex-pool/containers until what it is made of changes.
set -euo pipefail
cd "$(dirname "$0")/.."

SUITE=bookworm
PACKAGES=python3
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/codex-pool/containers

fail() {
  echo "test-containers: $*" >&2
  exit 1
}

[ "$(id -u)" = 0 ] || fail "is for root: containers without a network are reached through their namespaces"
for tool in podman runc debootstrap flock; do
  command -v "$tool" >/dev/null || fail "$tool is not installed; install it, e.g. apt-get install podman runc debootstrap util-linux"
done

mkdir -p "$CACHE"
exec 9>"$CACHE/lock"
flock -w 900 9 || fail "another one runs; see $CACHE/lock"
work=$(mktemp -d /var/tmp/codex-pool-containers.XXXXXX)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP

# runc and cgroupfs work in more places than what podman takes by itself, and limits cannot be raised everywhere.
cat >"$work/storage.conf" <<EOF
[storage]
driver = "overlay"
graphroot = "$CACHE/storage"
runroot = "$CACHE/run"
EOF
cat >"$work/containers.conf" <<EOF
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
EOF
export CONTAINERS_STORAGE_CONF=$work/storage.conf CONTAINERS_CONF=$work/containers.conf
podman=(podman)
. scripts/debian_image.sh
build containers "$PACKAGES"
CONTAINERS_TEST_IMAGE=localhost/$(image containers "$PACKAGES")
export CONTAINERS_TEST_IMAGE
"$@" 9>&-
