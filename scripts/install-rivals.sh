#!/usr/bin/env bash
# Installs what the benchmark measures Hawser against, where Debian has it. A rival
# that is missing is left out of the benchmark, which says so.
set -euo pipefail

missing=()
compgen -G '/usr/lib/postgresql/15/lib/pglogical.so' >/dev/null || missing+=(postgresql-15-pglogical)
command -v pgcopydb >/dev/null || missing+=(pgcopydb)
if [ ${#missing[@]} -eq 0 ] || ! command -v apt-get >/dev/null; then
	exit 0
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
	as_root=(sudo)
fi
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq
for package in "${missing[@]}"; do
	echo "installing $package from Debian's packages"
	"${as_root[@]}" apt-get install -y -qq "$package" >/dev/null || echo "$package could not be installed: the benchmark leaves it out" >&2
done
