# PostgreSQL, and PgBouncer in front of it. Neither runs as root.
# shellcheck shell=bash
postgres_install() { :; }
postgres_processes() { echo "postgres 127.0.0.1:$POSTGRES_PORT"; echo "pgbouncer 127.0.0.1:$PGBOUNCER_PORT"; }
# The binaries are not on the path: Debian keeps versions side by side.
postgres_bin() { find /usr/lib/postgresql -maxdepth 2 -name bin | sort -V | tail -n 1; }

# Root becomes the user that the package made. That user may pass through folders that only root may enter (root's home, where
# the stack lives by default), nothing more.
POSTGRES_AS=()
if [ "$(id -u)" = 0 ]; then
    POSTGRES_AS=(setpriv --reuid postgres --regid postgres --clear-groups --inh-caps +dac_read_search --ambient-caps +dac_read_search)
fi
postgres_configure() {
    local NODE=$STACK/data/postgres CONF=$STACK/conf/postgres
    mkdir -p "$NODE" "$CONF"
    render postgresql.conf "$CONF/postgresql.conf"
    render pg_hba.conf "$CONF/pg_hba.conf"
    render pgbouncer.ini "$CONF/pgbouncer.ini"
    printf '"%s" "%s"\n' "$POSTGRES_USER" "$POSTGRES_PASSWORD" >"$CONF/users.txt"
    printf '%s' "$POSTGRES_PASSWORD" >"$CONF/password"
    chmod 600 "$CONF/users.txt" "$CONF/password"
}
postgres_start() {
    local NODE=$STACK/data/postgres CONF=$STACK/conf/postgres BIN
    BIN=$(postgres_bin)
    postgres_configure
    if [ "$(id -u)" = 0 ]; then chown -R postgres: "$NODE" "$CONF"; fi
    if [ ! -e "$NODE/PG_VERSION" ]; then
        "${POSTGRES_AS[@]}" "$BIN/initdb" -D "$NODE" -U "$POSTGRES_USER" -E UTF8 --locale=C.UTF-8 --auth=scram-sha-256 \
            --pwfile="$CONF/password" >"$STACK/log/initdb.log" 2>&1 || { log_tail initdb; die 'postgres: initdb failed'; }
    fi
    spawn postgres "127.0.0.1:$POSTGRES_PORT" "${POSTGRES_AS[@]}" "$BIN/postgres" -D "$NODE" -c config_file="$CONF/postgresql.conf" \
        -c hba_file="$CONF/pg_hba.conf"
    spawn pgbouncer "127.0.0.1:$PGBOUNCER_PORT" "${POSTGRES_AS[@]}" pgbouncer "$CONF/pgbouncer.ini"
}
postgres_ready() {
    await postgres 'answers a query' sql "$POSTGRES_PORT" postgres 'select 1'
    if [ -z "$(sql "$POSTGRES_PORT" postgres "select 1 from pg_database where datname = '$POSTGRES_DATABASE'")" ]; then
        sql "$POSTGRES_PORT" postgres "create database \"$POSTGRES_DATABASE\"" >/dev/null
    fi
    await pgbouncer 'answers a query' sql "$PGBOUNCER_PORT" "$POSTGRES_DATABASE" 'select 1'
}
# sql PORT DATABASE STATEMENTS: PgBouncer's port or the direct one.
sql() { PGPASSWORD=$POSTGRES_PASSWORD PGCONNECT_TIMEOUT=5 psql -h 127.0.0.1 -p "$1" -U "$POSTGRES_USER" -d "$2" -v ON_ERROR_STOP=1 -XAtqc "$3"; }
# INT is PostgreSQL's fast stop (TERM waits until all clients have left) and PgBouncer's safe one.
postgres_stop() { halt INT pgbouncer; halt INT postgres; }
