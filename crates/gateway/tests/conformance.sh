#!/bin/sh
# Runs the Autobahn cases (by kosoku) against the gateway's own WebSocket code and fails on any
# result but OK or INFORMATIONAL. 12.* and 13.* test an extension that isn't offered.
#
# KOSOKU_VENV   where the Python environment is made or found (default: target/kosoku-venv)
# ECHO_PROGRAM  a built `echo` example (default: built here)
set -eu

here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
root=$(CDPATH= cd -- "$here/../../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
venv=${KOSOKU_VENV:-$target/kosoku-venv}

if [ ! -x "$venv/bin/kosoku" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check kosoku==0.1.0
fi
if [ -z "${ECHO_PROGRAM:-}" ]; then
    cargo build --quiet --manifest-path "$root/Cargo.toml" -p tidings-gateway --example echo
    ECHO_PROGRAM=$target/debug/examples/echo
fi

work=$(mktemp -d)
# The echo program ends when its standard input does, however this script ends.
mkfifo "$work/stdin"
"$ECHO_PROGRAM" --listen 127.0.0.1:0 <"$work/stdin" >"$work/address" &
exec 9>"$work/stdin"
trap 'exec 9>&-; wait; rm -rf "$work"' EXIT
tries=0
until [ -s "$work/address" ]; do
    tries=$((tries + 1))
    [ "$tries" -le 100 ] || { echo "the echo program doesn't start" >&2; exit 1; }
    sleep 0.1
done

status=0
timeout 540 "$venv/bin/kosoku" --parallelism 4 --exclude '12.*' --exclude '13.*' \
    --outdir "$work/report" "$(cat "$work/address")" >"$work/log" 2>&1 || status=$?
if [ ! -s "$work/report/index.json" ]; then
    cat "$work/log" >&2
    echo "no report (kosoku ended with $status)" >&2
    exit 1
fi
python3 - "$work/report/index.json" <<'PYTHON'
import collections
import json
import sys

(cases,) = json.load(open(sys.argv[1])).values()
good = {"OK", "INFORMATIONAL"}
bad = {
    case: (result["behavior"], result["behaviorClose"], result.get("remoteCloseCode"))
    for case, result in cases.items()
    if result["behavior"] not in good or result["behaviorClose"] not in good
}
counts = collections.Counter(result["behavior"] for result in cases.values())
print(f"conformance: {len(cases)} cases, {dict(counts)}")
for case, result in sorted(bad.items()):
    print(f"  {case}: {result}")
# Fewer cases than the suite has would be no proof.
sys.exit(1 if bad or len(cases) < 301 else 0)
PYTHON
