# HAProxy in front of the chat servers, which may come later: until then they are down in its statistics.
# shellcheck shell=bash
haproxy_install() { :; }
haproxy_processes() { echo "haproxy 127.0.0.1:$HAPROXY_PORT"; }
haproxy_configure() {
    local NODE=$STACK/data/haproxy
    mkdir -p "$NODE"
    render haproxy.cfg "$STACK/conf/haproxy.cfg"
}
haproxy_start() {
    haproxy_configure
    haproxy -c -f "$STACK/conf/haproxy.cfg" >"$STACK/log/haproxy-check.log" 2>&1 || { log_tail haproxy-check; die 'haproxy: its configuration is wrong'; }
    spawn haproxy "127.0.0.1:$HAPROXY_PORT" haproxy -db -f "$STACK/conf/haproxy.cfg"
}
haproxy_ready() { await haproxy 'statistics answer' curl -sf -m 2 "http://127.0.0.1:$HAPROXY_STATS_PORT/metrics"; }
# USR1 would wait for clients that may stay for days.
haproxy_stop() { halt TERM haproxy; }
# chat_servers: one line each, name and state as HAProxy sees it.
chat_servers() { curl -sf -m 2 "http://127.0.0.1:$HAPROXY_STATS_PORT/;csv" | awk -F, '$1 == "chat" && $2 != "BACKEND" { print $2, $18 }'; }
