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
source=$(grep -lsE '^(URIs:|deb ).*debian' /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | head -n 1 || true)
if [ "$(uname -sm)" != "Linux x86_64" ] || ! command -v apt-get >/dev/null || [ -z "$source" ]; then
	echo "pg_dump of PostgreSQL $major comes as a package of Debian on x86_64: copies from that version are not tested"
	exit 0
fi
archive=$(grep -E '^(URIs:|deb )' "$source" | grep -oE 'https?://[^ ]+' | head -n 1)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/lists/partial "$work"/cache/archives/partial "$work"/debs "$work"/root
: >"$work/status"
libraries="libpq5 libc6 libgcc-s1 libgssapi-krb5-2 libkrb5-3 libk5crypto3 libkrb5support0 libcom-err2 libkeyutils1 libldap2 libsasl2-2 libssl3t64 libzstd1 liblz4-1 zlib1g"
for suite in stable testing unstable; do
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $archive $suite main" >"$work/source.list"
	apt=(apt-get -qq -o Dir::Etc::sourcelist="$work/source.list" -o Dir::Etc::sourceparts=- -o Dir::State="$work" -o Dir::State::status="$work/status"
		-o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root)
	"${apt[@]}" update 2>/dev/null || continue
	echo "looking for pg_dump of PostgreSQL $major in Debian $suite"
	# shellcheck disable=SC2086 # one word a package
	if (cd "$work/debs" && "${apt[@]}" download "postgresql-client-$major" $libraries 2>/dev/null); then
		break
	fi
done
for deb in "$work"/debs/*.deb; do
	[ -e "$deb" ] || { echo "no suite of Debian has postgresql-client-$major here: copies from that version are not tested"; exit 0; }
	dpkg-deb -x "$deb" "$work/root"
done
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
