# Prometheus over the chat servers and HAProxy.
# shellcheck shell=bash
prometheus_install() { :; }
prometheus_processes() { echo "prometheus 127.0.0.1:$PROMETHEUS_PORT"; }
prometheus_configure() { render prometheus.yml "$STACK/conf/prometheus.yml"; }
prometheus_start() {
    prometheus_configure
    promtool check config "$STACK/conf/prometheus.yml" >"$STACK/log/promtool.log" 2>&1 || { log_tail promtool; die 'prometheus: its configuration is wrong'; }
    spawn prometheus "127.0.0.1:$PROMETHEUS_PORT" prometheus --config.file="$STACK/conf/prometheus.yml" --storage.tsdb.path="$STACK/data/prometheus" \
        --storage.tsdb.retention.time=1d --web.listen-address="127.0.0.1:$PROMETHEUS_PORT"
}
prometheus_ready() { await prometheus ready curl -sf -m 2 "http://127.0.0.1:$PROMETHEUS_PORT/-/ready"; }
prometheus_stop() { halt TERM prometheus; }
