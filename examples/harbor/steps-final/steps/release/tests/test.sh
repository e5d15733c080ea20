#!/bin/bash
if [ "$(cat /app/release.txt)" = 1.2.3 ] && [ -e /app/set-up ] && ! [ -e /tests/only-of-build ]; then
  echo 1 > /logs/verifier/reward.txt
else
  echo 0 > /logs/verifier/reward.txt
fi
