#!/usr/bin/env bash
# Runs go test, and says at the end what failed: an agent's log is long, and the end is
# what a CI keeps.
set -uo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
echo "go test $*"
go test "$@" 2>&1 | tee "$log" && exit
code=$?
echo
echo "what failed:"
grep -E '^ *--- FAIL|^ +[A-Za-z0-9_]+_test\.go:[0-9]+: |^panic: |^WARNING: DATA RACE|^FAIL' "$log" | cut -c 1-400 | tail -n 40
exit "$code"
