#!/usr/bin/env bash
# debian-packages.sh DIRECTORY PACKAGE...: unpacks packages of Debian into a directory, from the
# first of Debian's suites that has them all. Nothing of the system changes, its list of
# packages included. It fails, and says why, where they can't be had.
set -euo pipefail
to=$1
shift
source=$(grep -lsE '^(URIs:|deb ).*debian' /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | head -n 1 || true)
if [ "$(uname -sm)" != "Linux x86_64" ] || ! command -v apt-get >/dev/null || [ -z "$source" ]; then
	echo "$1 comes as a package of Debian on x86_64"
	exit 1
fi
archive=$(grep -E '^(URIs:|deb )' "$source" | grep -oE 'https?://[^ ]+' | head -n 1)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/lists/partial "$work"/cache/archives/partial "$work"/debs "$to"
: >"$work/status"
for suite in stable testing unstable; do
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $archive $suite main" >"$work/source.list"
	apt=(apt-get -qq -o Dir::Etc::sourcelist="$work/source.list" -o Dir::Etc::sourceparts=- -o Dir::State="$work" -o Dir::State::status="$work/status"
		-o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root)
	"${apt[@]}" update 2>/dev/null || continue
	echo "looking for $1 in Debian $suite"
	if (cd "$work/debs" && "${apt[@]}" download "$@" 2>/dev/null); then
		break
	fi
done
for deb in "$work"/debs/*.deb; do
	[ -e "$deb" ] || { echo "no suite of Debian has $1 here"; exit 1; }
	dpkg-deb -x "$deb" "$to"
done
