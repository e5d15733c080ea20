#!/bin/sh
# What test_bare.sh does inside of a container: `without-git`, then, in the same directory, `with-git`.
set -eu
# Properties of pure code, and what it costs in CPU, are the same on any machine: not here.
quick="(smoke or not real) and not (slow or hypothesis or own_target)"
pytest() {
  .venv/bin/python -m pytest --numprocesses 3 --dist worksteal --ignore tests/project/test_cost_gate.py -m "$1"
}
eval_options="--demo-script examples/eval/_demo/agent.toml --workers 2 --retries 1 -o out/eval"

say() {
  echo "== $(. /etc/os-release; echo "$PRETTY_NAME"), $(python3 --version), user $(id -u), $1"
}

# Runs a command that is to end with a code, and to say something.
refused() { # CODE TEXT COMMAND...
  code=0 expected=$1 text=$2
  shift 2
  "$@" >said 2>&1 || code=$?
  if [ "$code" != "$expected" ] || ! grep -qF "$text" said; then
    cat said
    echo "$*: ended with $code; expected $expected and the words: $text" >&2
    exit 1
  fi
}

without_git() {
  say "without git: what needs it is refused, all else works"
  refused 2 "make: git is not installed" make demo
  refused 2 "make: git is not installed" make test
  [ ! -e .venv ]
  # As these targets would, with git.
  make .venv/.installed-test
  # shellcheck disable=SC2086 - options
  refused 2 "codex-pool: git is not installed (looked on PATH): 10 samples have a workspace" \
    .venv/bin/codex-pool batch examples/eval $eval_options
  [ ! -e out/eval ]
  .venv/bin/codex-pool batch --demo --workers 2 --retries 1 -o out/first
  .venv/bin/codex-pool run --demo "Say hello in one sentence."
  # Where `make test` runs as root it has run the same tests: they are for a user who may less.
  [ "$(id -u)" != 0 ] || quick=smoke
  pytest "not git and $quick"
}

with_git() {
  say "with git: the demo, and the tests that need it"
  make demo
  pytest "git and $quick"
}

case $1 in
without-git) without_git ;;
with-git) with_git ;;
*) echo "bare_steps.sh: $1; expected without-git or with-git" >&2 && exit 2 ;;
esac
