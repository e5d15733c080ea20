#!/bin/sh
# make_repository.sh DIRECTORY: the repository of rows.jsonl, whose commit is the same on every machine.
set -eu
[ ! -d "$1/.git" ] || exit 0
git init -q -b main "$1"
cd "$1"
cat > prices.py <<'EOF'
"""Prices in cents."""


def total(prices):
    return sum(prices[1:])


def discount(price, percent):
    return price - price * percent // 100
EOF
cat > test_prices.py <<'EOF'
from prices import discount


def test_discount():
    assert discount(200, 10) == 180
EOF
printf '[pytest]\n' > pytest.ini
git add prices.py test_prices.py pytest.ini
export GIT_AUTHOR_NAME=example GIT_AUTHOR_EMAIL=example@example.org GIT_AUTHOR_DATE=2026-01-01T00:00:00Z
export GIT_COMMITTER_NAME=example GIT_COMMITTER_EMAIL=example@example.org GIT_COMMITTER_DATE=2026-01-01T00:00:00Z
git -c commit.gpgsign=false commit -q -m "Prices"
