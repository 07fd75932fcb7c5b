# Three chat servers in a namespace of their own on a running stack, for measurements: so the stack's own chat servers don't
# matter (stop them for a quiet machine). $CHAT_BINARY names a program that is built already.
# shellcheck shell=bash disable=SC2034  # Some are for the scripts that read this.
OWN_PORT=${OWN_PORT:-18080} # server N: 127.0.0.N at this, admin at + 1, peers at + 2
own_topics=(kafka_tool org.apache.kafka.tools.TopicCommand --bootstrap-server "127.0.0.1:$KAFKA_PORT")
# own_configure NAME PROGRAM [SETTING...]: settings, keys, names that are fresh each time but for the tables: ids are random, so
# nothing of an earlier run is met in them. Sets HERE, own_id and own_settings.
own_configure() {
    local name=$1 set at=$((OWN_PORT + 2)); own_program=$2; shift 2
    HERE=$STACK/conf/$name own_name=$name own_id=${name}_$$
    mkdir -p "$HERE/keys"
    chmod 700 "$HERE" "$HERE/keys"
    [ -e "$STACK/conf/chat/tidings.toml" ] || chat_configure
    # The clients' tokens are signed with a key of this run.
    openssl genpkey -algorithm ed25519 -outform DER -out "$HERE/token.key"
    openssl pkey -inform DER -in "$HERE/token.key" -pubout -out "$HERE/token.pem"
    {
        cat "$STACK/conf/chat/tidings.toml"
        printf '[[auth.keys]]\nkid = "bench"\nalgorithm = "EdDSA"\npublic_key = "%s"\nissuer = "tidings-bench"\naudience = "tidings"\n' "$HERE/token.pem"
    } >"$HERE/tidings.toml"
    own_settings=(--config "$HERE/tidings.toml")
    for set in "auth.keys_dir=$HERE/keys" "kafka.topic=$own_id" "kafka.group=$own_id" "kafka.pending_topic=$own_id-pending" \
        "kafka.pending_group=$own_id-pending" "kafka.dead_letter_topic=$own_id-dead" "cassandra.keyspace=$name" "postgres.database=$own_id" \
        "redis.key_prefix=$own_id:" "s3.bucket=$name" "peers.cluster=$own_id" "peers.servers=127.0.0.1:$at,127.0.0.2:$at,127.0.0.3:$at" \
        limits.unauthenticated_per_address=20000 limits.lookups_per_hour=1000000 limits.joins_per_hour=1000000 limits.sends_per_second=1000 "$@"; do
        own_settings+=(--set "$set")
    done
    trap own_finish EXIT
    sql "$POSTGRES_PORT" postgres "create database $own_id" >/dev/null
    "$own_program" migrate "${own_settings[@]}" >"$STACK/log/$name.log" 2>&1 || { log_tail "$name"; die "$name: migrate failed"; }
    "$own_program" api-key create "$name" "${own_settings[@]}" 2>/dev/null | grep -o 'tak_[^ ]*' >"$HERE/api-key"
}
# own_start: the servers; sets own_pids.
own_start() {
    local n
    own_pids=()
    for n in 1 2 3; do
        RUST_LOG=warn spawn "$own_name$n" "127.0.0.$n:$OWN_PORT" "$own_program" serve --wait "${own_settings[@]}" --listen "127.0.0.$n:$OWN_PORT" \
            --admin-listen "127.0.0.$n:$((OWN_PORT + 1))" --set "peers.listen=127.0.0.$n:$((OWN_PORT + 2))"
        own_pids+=("$(pid_of "$own_name$n")")
    done
    for n in 1 2 3; do await "$own_name$n" 'is ready' curl -sf -m 2 "http://127.0.0.$n:$((OWN_PORT + 1))/health/ready"; done
    await "${own_name}1" 'has a share of the partitions' own_routes_all
}
own_addresses() { echo "127.0.0.1:$1,127.0.0.2:$1,127.0.0.3:$1"; } # PORT: of the three servers, as the benches take them
own_routes_all() { # each partition has its router
    local n sum=0
    for n in 1 2 3; do sum=$((sum + $(curl -sf -m 2 "http://127.0.0.$n:$((OWN_PORT + 1))/metrics" | sed -n 's/^chat_kafka_owned //p'))); done
    [ "$sum" = "$KAFKA_LOG_PARTITIONS" ]
}
own_finish() {
    halt TERM "${own_name}1" "${own_name}2" "${own_name}3" "${own_balancers[@]}"
    "${own_topics[@]}" --delete --topic "$own_id.*" >/dev/null 2>&1 || true
    sql "$POSTGRES_PORT" postgres "drop database if exists $own_id with (force)" >/dev/null || true
}
# own_balance COUNT: so many HAProxies before the servers, at 127.0.0.1, ports from OWN_PORT + 10 on and statistics at + 20.
own_balancers=()
own_balance() {
    local n CHAT_PORT=$OWN_PORT CHAT_ADMIN_PORT=$((OWN_PORT + 1)) HAPROXY_PORT HAPROXY_STATS_PORT NODE
    for ((n = 0; n < $1; n++)); do
        HAPROXY_PORT=$((OWN_PORT + 10 + n)) HAPROXY_STATS_PORT=$((OWN_PORT + 20 + n)) NODE=$STACK/data/$own_name-haproxy$n
        mkdir -p "$NODE"
        render haproxy.cfg "$HERE/haproxy$n.cfg"
        own_balancers+=("$own_name-haproxy$n")
        spawn "$own_name-haproxy$n" "127.0.0.1:$HAPROXY_PORT" haproxy -db -f "$HERE/haproxy$n.cfg"
    done
    for ((n = 0; n < $1; n++)); do await "$own_name-haproxy$n" 'knows three servers' own_all_up $((OWN_PORT + 20 + n)); done
}
own_all_up() { [ "$(curl -sf -m 2 "http://127.0.0.1:$1/;csv" | awk -F, '$1 == "chat" && $2 ~ /^chat[123]$/ && $18 == "UP"' | wc -l)" = 3 ]; }
