#!/bin/bash
set -e
echo "all is well" > report.txt
