# Kafka: three processes, each broker and controller.
# shellcheck shell=bash
kafka_install() { jars kafka "$KAFKA_VERSION"; }
kafka_processes() { for N in 1 2 3; do echo "kafka$N 127.0.0.$N:$KAFKA_PORT"; done; }
KAFKA_BROKERS=127.0.0.1:$KAFKA_PORT,127.0.0.2:$KAFKA_PORT,127.0.0.3:$KAFKA_PORT

# The same cluster id on each, and fixed. ELR is named, so that a version without it fails here and not in a failover.
KAFKA_FORMAT=(format -t dGlkaW5ncy1jbHVzdGVyMQ --feature eligible.leader.replicas.version=1)

kafka_configure() {
    local N NODE CONF
    render kafka.log4j2.properties "$STACK/conf/kafka.log4j2.properties"
    for N in 1 2 3; do
        NODE=$STACK/data/kafka$N CONF=$STACK/conf/kafka$N
        mkdir -p "$NODE"
        render kafka.properties "$CONF/server.properties"
        render kafka.jvm "$CONF/jvm"
    done
}
kafka_start() {
    local N formats=() pid
    kafka_configure
    for N in 1 2 3; do
        if [ ! -e "$STACK/data/kafka$N/meta.properties" ]; then
            kafka_tool kafka.tools.StorageTool "${KAFKA_FORMAT[@]}" -c "$STACK/conf/kafka$N/server.properties" >"$STACK/log/kafka$N-format.log" 2>&1 &
            formats+=($!)
        fi
    done
    for pid in ${formats[@]+"${formats[@]}"}; do wait "$pid" || { for N in 1 2 3; do log_tail "kafka$N-format"; done; die 'kafka: formatting failed'; }; done
    for N in 1 2 3; do kafka_node "$N"; done
}
kafka_node() { spawn "kafka$1" "127.0.0.$1:$KAFKA_PORT" java "@$STACK/conf/kafka$1/jvm" kafka.Kafka "$STACK/conf/kafka$1/server.properties"; }
kafka_ready() {
    local N
    for N in 1 2 3; do await "kafka$N" 'port open' port_open "127.0.0.$N:$KAFKA_PORT"; done
    await kafka1 'all three brokers registered' kafka_sees_all
}
kafka_sees_all() { [ "$(timeout 5 kcat -b "$KAFKA_BROKERS" -L -J 2>/dev/null | grep -o '"id":[0-9]*,"name"' | sort -u | wc -l)" = 3 ]; }
kafka_stop() { halt TERM kafka1 kafka2 kafka3; }

# kafka_tool CLASS ARGUMENTS...: a command-line tool of Kafka.
kafka_tool() {
    java -Xmx128m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Dlog4j2.configurationFile="$STACK/conf/kafka.log4j2.properties" \
        -cp "$DIST/kafka-$KAFKA_VERSION/*" "$@"
}
