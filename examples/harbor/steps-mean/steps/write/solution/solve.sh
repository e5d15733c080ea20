#!/bin/bash
echo one > notes.txt
