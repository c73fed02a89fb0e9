#!/usr/bin/env bash
# Installs pg_dump and pg_restore of a major version of PostgreSQL for the tests, into
# .versions/client, once: Debian's packages of it, from whichever of Debian's suites has
# that version, with the libraries that they were built for. Nothing of the system changes,
# its list of packages included. Where they can't be had the tests of copies from newer
# primaries are skipped and say so.
set -euo pipefail
cd "$(dirname "$0")/.."
major=$1 to=$PWD/.versions/client

if [ -x "$to/bin/pg_dump" ] && "$to/bin/pg_dump" --version | grep -q " $major\."; then
	exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
libraries="libpq5 libc6 libgcc-s1 libgssapi-krb5-2 libkrb5-3 libk5crypto3 libkrb5support0 libcom-err2 libkeyutils1 libldap2 libsasl2-2 libssl3t64 libzstd1 liblz4-1 zlib1g"
# shellcheck disable=SC2086 # one word a package
if ! scripts/debian-packages.sh "$work/root" "postgresql-client-$major" $libraries; then
	echo "copies from PostgreSQL $major are not tested"
	exit 0
fi
rm -rf "$to"
mkdir -p "$to/bin"
cp -a "$work/root/usr/lib/x86_64-linux-gnu" "$to/lib"
for program in pg_dump pg_restore; do
	cp "$work/root/usr/lib/postgresql/$major/bin/$program" "$to/lib/$program"
	cat >"$to/bin/$program" <<-END
		#!/bin/sh
		exec '$to/lib/ld-linux-x86-64.so.2' --library-path '$to/lib' '$to/lib/$program' "\$@"
	END
	chmod 755 "$to/bin/$program"
done
"$to/bin/pg_dump" --version
