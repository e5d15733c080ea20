#!/bin/bash
set -e
id -un > /home/worker/name.txt
