# Images of a Debian, for scripts that set `podman`, a command as an array, `work`, a directory, SUITE, and `fail`.
# BARE_MIRROR names a mirror other than Debian's own.

# An image, named for what it is made of.
image() { # NAME PACKAGES
  echo "codex-pool-bare-$1:$(echo "$SUITE $2" | sha256sum | cut -c1-12)"
}

# Makes it by debootstrap, unless it is there.
build() { # NAME PACKAGES
  "${podman[@]}" image exists "$(image "$@")" && return
  echo "== a Debian $SUITE with $2"
  debootstrap --variant=minbase --include="$2" "$SUITE" "$work/$1" ${BARE_MIRROR:+"$BARE_MIRROR"} >"$work/$1.log" 2>&1 \
    || { tail -20 "$work/$1.log" >&2; fail "debootstrap failed"; }
  rm -rf "$work/$1"/var/cache/apt/archives/*.deb "$work/$1"/var/lib/apt/lists/*
  tar -C "$work/$1" -c . | "${podman[@]}" import --quiet - "$(image "$@")" >/dev/null
  rm -rf "${work:?}/$1"
}
