#!/bin/bash
set -e
cat > sum.sh <<'EOF'
total=0
for each in "$@"; do total=$((total + each)); done
echo "$total"
EOF
