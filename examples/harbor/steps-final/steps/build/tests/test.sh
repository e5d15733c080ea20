#!/bin/bash
if [ "$(cat /app/build.txt)" = built ] && [ -e /tests/only-of-build ]; then
  echo 1 > /logs/verifier/reward.txt
else
  echo 0 > /logs/verifier/reward.txt
fi
