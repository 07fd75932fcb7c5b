#!/bin/sh
# The web page: its rules with node, then the page itself in real browsers against the server
# TIDINGS_BIN (default: the release build). Needs node 20 or later and npm; Chromium is installed
# from Debian when /usr/bin/chromium is absent. Screenshots go to TIDINGS_SCREENSHOTS, if given.
set -eu
here=$(cd "$(dirname "$0")/web" && pwd)
root=$(cd "$here/../../../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
modules=$target/web-test

node --test "$here"/*.test.mjs

export TIDINGS_BIN="${TIDINGS_BIN:-$target/release/tidings}"
[ -x "$TIDINGS_BIN" ] || { echo "web.sh: no server at $TIDINGS_BIN; build it first" >&2; exit 1; }
if [ ! -x "${CHROMIUM:-/usr/bin/chromium}" ]; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null
fi
mkdir -p "$modules"
if ! cmp -s "$here/package-lock.json" "$modules/installed.json"; then
  cp "$here/package.json" "$here/package-lock.json" "$modules/"
  (cd "$modules" && npm ci --no-audit --no-fund --silent)
  cp "$here/package-lock.json" "$modules/installed.json"
fi
TIDINGS_WEB_MODULES=$modules exec timeout 300 node "$here/browsers.mjs"
