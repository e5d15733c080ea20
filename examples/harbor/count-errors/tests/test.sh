#!/bin/bash
if [ "$(cat /app/errors.txt 2>&1)" = 2 ]; then
  echo 1 > /logs/verifier/reward.txt
else
  echo 0 > /logs/verifier/reward.txt
fi
