#!/bin/bash
echo two >> notes.txt
