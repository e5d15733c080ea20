#!/bin/bash
if [ "$(cat /home/worker/name.txt)" = worker ] && [ "$(stat -c %U /home/worker/name.txt)" = worker ] && [ "$(id -un)" = root ]; then
  echo 1 > /logs/verifier/reward.txt
else
  echo 0 > /logs/verifier/reward.txt
fi
