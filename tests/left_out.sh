#!/bin/sh
# Says what the tests of one `make test` left out: tests/left_out.sh FILE, which pytest's --left-out wrote.
if [ ! -e "$1" ]; then echo "No tests were run."; exit; fi
count=0
while read -r number _; do count=$((count + number)); done <"$1"
if [ "$count" = 0 ]; then echo "No test was left out."; exit; fi
echo "Left out: $count tests"
cat "$1"
