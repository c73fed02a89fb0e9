#!/usr/bin/env bash
# Installs the server programs of further major versions of PostgreSQL for the tests:
# exactly those of scripts/versions/package-lock.json, into .versions, once; and what those
# packages lack: pg_dump of the newest of them, and pg_upgrade to one of them. Tests of what is
# missing are skipped and name it.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/install-client.sh 18
scripts/install-upgrade.sh 17

if cmp -s scripts/versions/package-lock.json .versions/installed; then
	exit 0
fi
if [ "$(uname -sm)" != "Linux x86_64" ]; then
	echo "PostgreSQL 14, 16, 17 and 18 come as programs for Linux on x86_64: tests of these versions are skipped"
	exit 0
fi
if ! command -v npm >/dev/null; then
	echo "npm is missing, which installs PostgreSQL 14, 16, 17 and 18: tests of these versions are skipped"
	exit 0
fi
echo "installing PostgreSQL 14, 16, 17 and 18 for the tests, with npm"
mkdir -p .versions
cp scripts/versions/package.json scripts/versions/package-lock.json .versions/
npm ci --prefix .versions --ignore-scripts --no-audit --no-fund --loglevel=error
# A package holds no symbolic links; this script of its own makes those of the libraries.
for package in .versions/node_modules/postgresql-*; do
	(cd "$package" && node scripts/hydrate-symlinks.js)
done
mv .versions/package-lock.json .versions/installed
