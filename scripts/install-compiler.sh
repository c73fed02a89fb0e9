#!/usr/bin/env bash
# Installs the C compiler and library on Debian where they are missing: PostgreSQL's
# parser is linked into the agent, and the tests' race detector needs them too.
set -euo pipefail

if command -v "${CC:-gcc}" >/dev/null && [ -e /usr/include/stdlib.h ]; then
	exit 0
fi
if ! command -v apt-get >/dev/null; then
	echo "a C compiler is missing; install gcc and the C library's headers" >&2
	exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
	as_root=(sudo)
fi
echo "installing gcc from Debian's packages"
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" apt-get install -y -qq gcc libc6-dev >/dev/null
