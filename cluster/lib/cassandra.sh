# Cassandra: a ring of three nodes, one rack each.
# shellcheck shell=bash disable=SC2034  # Variables are read by templates, see render.
cassandra_install() { jars cassandra "$CASSANDRA_VERSION"; }
cassandra_processes() { for N in 1 2 3; do echo "cassandra$N 127.0.0.$N:$CASSANDRA_PORT"; done; }

# One token a node, evenly spaced and written down, so that all three may start together without agreeing on anything first.
CASSANDRA_TOKENS=(-9223372036854775708 -3074457345618258503 3074457345618258702)

cassandra_configure() {
    local N TOKEN NODE LIB=$DIST/cassandra-$CASSANDRA_VERSION JMX_PORT CONF MEMTABLE
    for N in 1 2 3; do
        NODE=$STACK/data/cassandra$N CONF=$STACK/conf/cassandra$N TOKEN=${CASSANDRA_TOKENS[N - 1]} JMX_PORT=$((CASSANDRA_JMX_PORT + N - 1)) MEMTABLE=$((16 + 8 * N))MiB
        mkdir -p "$NODE/triggers" "$NODE/tmp"
        render cassandra.yaml "$CONF/cassandra.yaml"
        render cassandra.jvm "$CONF/jvm"
        render cassandra.logback.xml "$CONF/logback.xml"
        printf 'dc=dc1\nrack=r%s\n' "$N" >"$CONF/rackdc.properties"
    done
}
# An idle worker thread of Cassandra looks for work every 10 us (its SEPWorker), which with 50 us of timer slack, the kernel's default,
# is most of what small nodes do: with 1 ms a node under 60 messages a second takes half the CPU, and the p99 falls to a quarter.
CASSANDRA_LAZY=(sh -c 'echo 1000000 >/proc/self/timerslack_ns || true; exec "$@"' lazy)
cassandra_start() {
    local N unlocked=()
    # As root Cassandra locks its whole heap in memory, twice the space that it needs here: without that right it doesn't.
    if [ "$(id -u)" = 0 ]; then unlocked=(setpriv --bounding-set -ipc_lock --inh-caps -ipc_lock); fi
    cassandra_configure
    for N in 1 2 3; do
        spawn "cassandra$N" "127.0.0.$N:$CASSANDRA_PORT" ${unlocked[@]+"${unlocked[@]}"} "${CASSANDRA_LAZY[@]}" \
            java "@$STACK/conf/cassandra$N/jvm" org.apache.cassandra.service.CassandraDaemon
    done
}
cassandra_ready() {
    local N
    for N in 1 2 3; do await "cassandra$N" 'CQL port open' port_open "127.0.0.$N:$CASSANDRA_PORT"; done
    # A port opens before the ring agrees: each node must see all three up.
    for N in 1 2 3; do await "cassandra$N" 'all three nodes up and normal' cassandra_sees_all "$N"; done
}
# Asked by nodetool, which costs more than a second of CPU (a node's log doesn't always name what it learned). The answer is kept
# for as long as the process lives, so `up` on a running stack asks nothing.
cassandra_sees_all() {
    local seen=$STACK/conf/cassandra$1/seen
    [ "$(cat "$seen" 2>/dev/null)" = "$(cat "$STACK/run/cassandra$1")" ] && return
    [ "$(nodetool "$1" status | grep -c '^UN')" = 3 ] && cp "$STACK/run/cassandra$1" "$seen"
}
cassandra_stop() { halt TERM cassandra1 cassandra2 cassandra3; }

# nodetool N ARGUMENTS...
nodetool() {
    local N=$1; shift
    java "@$STACK/conf/cassandra$N/jvm" -Xms16m -Xmx96m -DLEVEL=OFF -cp "$DIST/cassandra-$CASSANDRA_VERSION/*" \
        org.apache.cassandra.tools.NodeTool -h 127.0.0.1 -p "$((CASSANDRA_JMX_PORT + N - 1))" "$@"
}
