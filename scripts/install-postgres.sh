#!/usr/bin/env bash
# Installs PostgreSQL's server and client programs on Debian where they are
# missing, without the default cluster that the package would create and start.
set -euo pipefail

if compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null && compgen -G '/usr/lib/postgresql/*/bin/pg_dump' >/dev/null; then
	exit 0
fi
if command -v initdb >/dev/null && command -v pg_dump >/dev/null; then
	exit 0
fi
if ! command -v apt-get >/dev/null; then
	echo "PostgreSQL (initdb, pg_dump) is missing; install version 14 or later and set HAWSER_PG_BIN to its bin directory" >&2
	exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
	as_root=(sudo)
fi
echo "installing PostgreSQL from Debian's packages"
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" apt-get install -y -qq postgresql-common >/dev/null
"${as_root[@]}" mkdir -p /etc/postgresql-common/createcluster.d
echo 'create_main_cluster = false' | "${as_root[@]}" tee /etc/postgresql-common/createcluster.d/hawser.conf >/dev/null
"${as_root[@]}" apt-get install -y -qq postgresql postgresql-client >/dev/null
