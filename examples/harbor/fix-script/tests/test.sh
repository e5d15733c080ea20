#!/bin/bash
if [ "$(bash /app/sum.sh 1 -2 3)" = 2 ] && [ "$(bash /app/sum.sh)" = 0 ]; then
  echo 1 > /logs/verifier/reward.txt
else
  echo 0 > /logs/verifier/reward.txt
fi
