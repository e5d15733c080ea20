#!/bin/bash
# A report that is missing is not scored: nothing is written then.
[ -e /app/report.txt ] || exit 1
grep -qx 'all is well' /app/report.txt && reward=1.0 || reward=0.0
echo "$reward" > /logs/verifier/reward.txt
