#!/bin/bash
cat version.txt > release.txt
