#!/usr/bin/env bash
# Installs all programs of a major version of PostgreSQL for the tests, pg_upgrade among them,
# into .versions/upgrade, once: Debian's packages of it with the libraries that they were built
# for. Where they can't be had the tests of pg_upgrade are skipped and say so.
set -euo pipefail
cd "$(dirname "$0")/.."
major=$1 to=$PWD/.versions/upgrade
bin=$to/usr/lib/postgresql/$major/bin

if [ -x "$bin/pg_upgrade" ] && "$bin/pg_upgrade" --version >/dev/null 2>&1; then
	exit 0
fi
rm -rf "$to"
libraries="libpq5 libc6 libgcc-s1 libstdc++6 libgssapi-krb5-2 libkrb5-3 libk5crypto3 libkrb5support0 libcom-err2 libkeyutils1 libldap2 libsasl2-2 libssl3t64
	libzstd1 liblz4-1 zlib1g libicu76 libxml2 libpam0g libsystemd0 libuuid1 libxslt1.1 libselinux1 libaudit1 libcap2 libcap-ng0 libpcre2-8-0 libgcrypt20
	libgpg-error0 liblzma5 libreadline8t64 libtinfo6 libedit2 libbsd0 libmd0 libnuma1 liburing2 patchelf"
# shellcheck disable=SC2086 # one word a package
if ! scripts/debian-packages.sh "$to.new" "postgresql-$major" "postgresql-client-$major" $libraries; then
	rm -rf "$to.new"
	echo "pg_upgrade to PostgreSQL $major is not tested"
	exit 0
fi
mv "$to.new" "$to"
# The programs find their own libraries, whatever the system's are; there is no compiler for JIT.
lib=$to/usr/lib/x86_64-linux-gnu loader=$to/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2
rm -f "$to/usr/lib/postgresql/$major/lib/llvmjit.so"
for program in "$bin"/*; do
	if head -c 4 "$program" | grep -q ELF; then
		"$loader" --library-path "$lib" "$to/usr/bin/patchelf" --set-interpreter "$loader" --force-rpath --set-rpath "$lib" "$program"
	fi
done
"$bin/pg_upgrade" --version
