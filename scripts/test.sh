#!/usr/bin/env bash
# Runs go test with these arguments.
# The clusters' files are in memory where there is enough of it: the tests make some ten
# thousand of them in hundreds of databases, and a disk's file system takes half of the time.
# At the end it says what failed: an agent's log is long, and the end is what a CI keeps.
set -uo pipefail
cd "$(dirname "$0")/.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export GOTMPDIR=$scratch # an in-memory file system may be mounted so that nothing on it can be run

# in_memory prints a new directory in memory, if 12 GiB are left of both.
in_memory() {
	local need=$((12 * 1024 * 1024)) room memory dir
	room=$(df --output=avail /dev/shm | tail -n 1) || return
	memory=$(awk '/^MemAvailable:/ {print $2}' /proc/meminfo) || return
	((room >= need && memory >= need)) || return
	dir=$(mktemp -d /dev/shm/hawser.XXXXXX) || return
	chmod 1777 "$dir"
	printf '#!/bin/sh\n' >"$dir/run" && chmod +x "$dir/run" && "$dir/run" && rm "$dir/run" && echo "$dir" && return
	rm -rf "$dir"
}
dir=$(in_memory 2>/dev/null)
if [ -n "$dir" ]; then
	export TMPDIR=$dir
	trap 'rm -rf "$scratch" "$TMPDIR"' EXIT
fi

echo "go test $* (in ${TMPDIR:-/tmp})"
go test "$@" 2>&1 | tee "$scratch/log" && exit
code=$?
echo
echo "what failed:"
grep -E '^ *--- FAIL|^ +[A-Za-z0-9_]+_test\.go:[0-9]+: |^panic: |^WARNING: DATA RACE|^FAIL' "$scratch/log" | cut -c 1-400 | tail -n 40
exit "$code"
