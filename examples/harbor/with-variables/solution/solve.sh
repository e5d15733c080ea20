#!/bin/bash
set -e
echo "$COLOUR" > "$FILE"
