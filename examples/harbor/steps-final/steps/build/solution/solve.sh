#!/bin/bash
echo built > build.txt
