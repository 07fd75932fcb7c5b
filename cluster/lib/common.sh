# Processes, waits and templates: what the services' files share.
# shellcheck shell=bash disable=SC2034  # Variables are read by templates, see render.
set -euo pipefail
umask 022
PATH=$PATH:/usr/sbin:/sbin # where Debian puts haproxy and pgbouncer
CLUSTER=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=env
. "$CLUSTER/env"
DIST=$STACK/dist
mkdir -p "$STACK"/{dist,data,log,conf,run}

say() { printf '%s\n' "$*" >&2; }
die() { say "stack: $*"; exit 1; }
# log_tail NAME: the end of a process's log, for the message of whatever failed.
log_tail() { [ ! -s "$STACK/log/$1.log" ] || { say "--- last lines of $STACK/log/$1.log"; tail -n 15 "$STACK/log/$1.log" >&2; }; }

# A pid alone may have been given to another process since: its start time tells (field 22 of stat; the name in field 2 may
# have blanks, so count from the closing bracket).
started_at() {
    local stat fields
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    read -ra fields <<<"${stat##*) }"
    [ "${fields[0]}" != Z ] && echo "${fields[19]}"
}
alive() {
    local pid at
    read -r pid at 2>/dev/null <"$STACK/run/$1" && [ "$(started_at "$pid")" = "$at" ]
}
pid_of() { cut -d' ' -f1 "$STACK/run/$1"; }

# spawn NAME ADDRESS:PORT COMMAND...: starts it in a session of its own, unless it runs. Its pid and start time go to run/NAME.
spawn() {
    local name=$1 address=$2 pid; shift 2
    alive "$name" && return
    if port_open "$address"; then die "$name: $address is taken by a process that isn't the stack's (set another port, see cluster/env)"; fi
    : >"$STACK/log/$name.log"
    # Descriptor 9 is the lock of `up` and `down`: a service must not keep it.
    setsid "$@" >>"$STACK/log/$name.log" 2>&1 </dev/null 9>&- &
    pid=$!
    echo "$pid $(started_at "$pid")" >"$STACK/run/$name"
}
# halt SIGNAL NAME...: all at once; whoever has not left by the deadline is killed.
halt() {
    local signal=$1 name end=$((SECONDS + STOP_DEADLINE)); shift
    for name; do alive "$name" && kill "-$signal" "$(pid_of "$name")"; done
    for name; do
        while alive "$name" && [ $SECONDS -lt $end ]; do sleep 0.1; done
        if alive "$name"; then say "$name did not stop in $STOP_DEADLINE s: killed"; kill -KILL "$(pid_of "$name")"; fi
        rm -f "$STACK/run/$name"
    done
}
port_open() { (exec 3<>"/dev/tcp/${1%:*}/${1##*:}") 2>/dev/null; }

# await NAME WHAT COMMAND...: until the command succeeds; gives up when the process dies or the deadline passes.
await() {
    local name=$1 what=$2 end=$((SECONDS + START_DEADLINE)); shift 2
    until "$@" >/dev/null 2>&1; do
        alive "$name" || { log_tail "$name"; die "$name died before this was so: $what"; }
        [ $SECONDS -lt $end ] || { log_tail "$name"; die "$name: not so in $START_DEADLINE s: $what"; }
        sleep 0.1
    done
}

# render TEMPLATE FILE: replaces each @NAME@ by the variable of that name; an unset one is an error (set -u).
render() {
    local text; text=$(<"$CLUSTER/config/$1")
    while [[ $text =~ @([A-Z][A-Z_0-9]*)@ ]]; do text=${text//"${BASH_REMATCH[0]}"/${!BASH_REMATCH[1]}}; done
    mkdir -p "$(dirname "$2")"
    printf '%s\n' "$text" >"$2"
}

# jars NAME VERSION: fetches a Java service's jars by lock/NAME.pom.xml and checks each against lock/NAME.sha256.
jars() {
    local to=$DIST/$1-$2
    [ -e "$to/.complete" ] && return
    command -v mvn >/dev/null || die "install: mvn is needed to fetch $1"
    say "install: $1 $2"
    rm -rf "$to"
    mvn -q -B -C -Dstyle.color=never -f "$CLUSTER/lock/$1.pom.xml" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$to"
    (cd "$to" && sha256sum --quiet -c "$CLUSTER/lock/$1.sha256") || die "install: $1's files differ from lock/$1.sha256"
    [ "$(find "$to" -name '*.jar' | wc -l)" = "$(wc -l <"$CLUSTER/lock/$1.sha256")" ] || die "install: $1 has files that lock/$1.sha256 doesn't name"
    touch "$to/.complete"
}
