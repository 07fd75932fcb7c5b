# Three chat servers over the engines.
# shellcheck shell=bash disable=SC2034  # Variables are read by templates, see render.
CHAT_KEYS=$STACK/data/chat/keys
CHAT_TLS=$STACK/conf/chat/tls
# chat_binary: what is run; built when nobody names one.
chat_binary() { echo "${CHAT_BINARY:-${CARGO_TARGET_DIR:-$CLUSTER/../target}/release/tidings}"; }
# chat_command ARGS...: the program, without the stack's own variable, which it would take for a setting that it doesn't know.
chat_command() { env -u TIDINGS_STACK "$(chat_binary)" "$@"; }
chat_install() {
    [ -z "${CHAT_BINARY:-}" ] || return 0
    say 'install: the chat server'
    (cd "$CLUSTER/.." && cargo build --release --quiet --features cluster) || die 'chat: the build failed'
}
chat_processes() { local n; for n in 1 2 3; do echo "chat$n 127.0.0.$n:$CHAT_PORT"; done; }
# A private CA of the cluster and one certificate for its three servers.
chat_certificates() {
    [ ! -e "$CHAT_TLS/server.pem" ] || return 0
    mkdir -p "$CHAT_TLS"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj '/CN=tidings stack' \
        -keyout "$CHAT_TLS/ca.key" -out "$CHAT_TLS/ca.pem" 2>/dev/null
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj '/CN=chat' \
        -keyout "$CHAT_TLS/server.key" -out "$CHAT_TLS/server.csr" 2>/dev/null
    openssl x509 -req -in "$CHAT_TLS/server.csr" -CA "$CHAT_TLS/ca.pem" -CAkey "$CHAT_TLS/ca.key" -CAcreateserial -days 3650 \
        -extfile <(printf 'subjectAltName=IP:127.0.0.1,IP:127.0.0.2,IP:127.0.0.3\nextendedKeyUsage=serverAuth,clientAuth\n') \
        -out "$CHAT_TLS/server.pem" 2>/dev/null
    rm "$CHAT_TLS/server.csr"
    chmod 600 "$CHAT_TLS"/*.key
}
chat_configure() {
    local CHAT_REDIS_MODE CHAT_REDIS_NODES n nodes=() port=$REDIS_SENTINEL_PORT
    CHAT_REDIS_MODE=$(redis_mode)
    [ "$CHAT_REDIS_MODE" = sentinel ] || port=$REDIS_CLUSTER_PORT
    for n in 1 2 3; do nodes+=("\"127.0.0.$n:$port\""); done
    CHAT_REDIS_NODES=$(IFS=,; echo "${nodes[*]}")
    mkdir -p "$CHAT_KEYS"
    chmod 700 "$CHAT_KEYS"
    chat_certificates
    render tidings.toml "$STACK/conf/chat/tidings.toml"
    chmod 600 "$STACK/conf/chat/tidings.toml"
}
# chat_run N [COMMAND...]: starts server N, which waits for its engines; by a command that runs what follows it, if there is one.
chat_run() {
    spawn "chat$1" "127.0.0.$1:$CHAT_PORT" "${@:2}" env -u TIDINGS_STACK "$(chat_binary)" serve --wait --config "$STACK/conf/chat/tidings.toml" --listen "127.0.0.$1:$CHAT_PORT" \
        --admin-listen "127.0.0.$1:$CHAT_ADMIN_PORT" --set "peers.listen=127.0.0.$1:$CHAT_PEERS_PORT"
}
chat_start() {
    local n
    chat_configure
    chat_command migrate --wait --config "$STACK/conf/chat/tidings.toml" >"$STACK/log/migrate.log" 2>&1 || { log_tail migrate; die 'chat: migrate failed'; }
    for n in 1 2 3; do chat_run "$n"; done
}
chat_ready() {
    local n
    for n in 1 2 3; do await "chat$n" 'is ready' curl -sf -m 2 "http://127.0.0.$n:$CHAT_ADMIN_PORT/health/ready"; done
    # It looks twice a second at a server that was down: until then it answers 503.
    ! alive haproxy || for n in 1 2 3; do await haproxy "chat$n takes clients" chat_is_up "$n"; done
}
chat_stop() { halt TERM chat1 chat2 chat3; }
# chat_restart: one after the other, each when the one before is ready again.
chat_restart() {
    local n
    for n in 1 2 3; do
        halt TERM "chat$n"
        chat_run "$n"
        await "chat$n" 'is ready' curl -sf -m 2 "http://127.0.0.$n:$CHAT_ADMIN_PORT/health/ready"
        await haproxy "chat$n takes clients" chat_is_up "$n"
    done
}
chat_is_up() { chat_servers | grep -q "^chat$1 UP"; }
