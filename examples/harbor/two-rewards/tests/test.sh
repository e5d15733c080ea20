#!/bin/bash
correct=0 tidy=0
[ "$(tr '\n' ' ' < /app/squares.txt)" = "1 4 9 16 25 " ] && correct=1
[ "$(ls -A /app)" = squares.txt ] && tidy=1
echo "{\"reward\": $((correct * tidy)), \"correct\": $correct, \"tidy\": $tidy}" > /logs/verifier/reward.json
