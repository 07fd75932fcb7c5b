# Redis: a primary and two replicas under three Sentinels, or a cluster of three primaries with a replica each.
# shellcheck shell=bash disable=SC2034  # Variables are read by templates, see render.
redis_install() { :; }
# Which of the two was asked for last; `up` without --redis keeps it.
redis_mode() { cat "$STACK/conf/redis-mode" 2>/dev/null || echo sentinel; }
redis_processes() {
    local N
    if [ "$(redis_mode)" = cluster ]; then
        for N in 1 2 3; do echo "redis-cluster$N 127.0.0.$N:$REDIS_CLUSTER_PORT"; done
        for N in 1 2 3; do echo "redis-cluster$((N + 3)) 127.0.0.$N:$((REDIS_CLUSTER_PORT + 1))"; done
    else
        for N in 1 2 3; do echo "redis$N 127.0.0.$N:$REDIS_PORT"; done
        for N in 1 2 3; do echo "sentinel$N 127.0.0.$N:$REDIS_SENTINEL_PORT"; done
    fi
}
redis_at() { redis-cli -h "${1%:*}" -p "${1##*:}" "${@:2}"; }

# redis_config NAME HOST PORT MODE: MODE names the second half.
redis_config() {
    local NAME=$1 HOST=$2 PORT=$3 NODE=$STACK/data/$1 CONF=$STACK/conf/$1.conf
    mkdir -p "$NODE"
    [ ! -e "$CONF" ] || return 0
    render redis.conf "$CONF.new"
    render "redis.$4-member.conf" "$CONF.more"
    cat "$CONF.new" "$CONF.more" >"$CONF"
    rm "$CONF.new" "$CONF.more"
}
redis_configure() {
    local N NODE REPLICAOF='# The first primary.'
    for N in 1 2 3; do
        redis_config "redis$N" "127.0.0.$N" "$REDIS_PORT" sentinel
        REPLICAOF="replicaof 127.0.0.1 $REDIS_PORT"
        redis_config "redis-cluster$N" "127.0.0.$N" "$REDIS_CLUSTER_PORT" cluster
        redis_config "redis-cluster$((N + 3))" "127.0.0.$N" "$((REDIS_CLUSTER_PORT + 1))" cluster
        NODE=$STACK/data/sentinel$N
        mkdir -p "$NODE"
        [ -e "$STACK/conf/sentinel$N.conf" ] || render sentinel.conf "$STACK/conf/sentinel$N.conf"
    done
}
redis_start() {
    local name address
    redis_configure
    while read -r name address; do
        # Sentinels start when the replicas follow: each then finds both at its first look.
        case $name in sentinel*) ;; *) spawn "$name" "$address" redis-server "$STACK/conf/$name.conf" ;; esac
    done < <(redis_processes)
}
redis_ready() {
    local name address nodes=() N
    while read -r name address; do
        case $name in
        sentinel*) ;;
        *) await "$name" 'answers PING' redis_answers "$address"; nodes+=("$address") ;;
        esac
    done < <(redis_processes)
    if [ "$(redis_mode)" = cluster ]; then
        if [ "$(redis_at "127.0.0.1:$REDIS_CLUSTER_PORT" cluster nodes | wc -l)" = 1 ]; then
            # Replicas are spread over the addresses by the tool. It waits without end for nodes that don't see each other.
            timeout "$START_DEADLINE" redis-cli --cluster create "${nodes[@]}" --cluster-replicas 1 --cluster-yes \
                >"$STACK/log/redis-cluster-create.log" || { log_tail redis-cluster-create; die 'redis: the cluster was not made'; }
        fi
        for N in 1 2 3; do await "redis-cluster$N" 'cluster_state:ok' redis_cluster_ok "$N"; done
        return
    fi
    await redis1 'two replicas follow' redis_followed
    for N in 1 2 3; do spawn "sentinel$N" "127.0.0.$N:$REDIS_SENTINEL_PORT" redis-sentinel "$STACK/conf/sentinel$N.conf"; done
    for N in 1 2 3; do await "sentinel$N" 'three Sentinels, two replicas' sentinel_sees_all "$N"; done
}
redis_answers() { [ "$(redis_at "$1" ping)" = PONG ]; }
redis_cluster_ok() { [[ $(redis_at "127.0.0.$1:$REDIS_CLUSTER_PORT" cluster info) == *cluster_state:ok* ]]; }
# After a failover the primary may be any of the three.
redis_followed() {
    local N
    for N in 1 2 3; do [[ $(redis_at "127.0.0.$N:$REDIS_PORT" info replication 2>&1) == *connected_slaves:2* ]] && return; done
    return 1
}
sentinel_sees_all() {
    local at=127.0.0.$1:$REDIS_SENTINEL_PORT
    [[ $(redis_at "$at" sentinel ckquorum "$REDIS_SERVICE") == *'OK 3 usable'* && $(redis_at "$at" info sentinel) == *slaves=2* ]]
}
# The primary's address, as Sentinel says it.
redis_primary() { redis_at "127.0.0.${1:-1}:$REDIS_SENTINEL_PORT" sentinel get-master-addr-by-name "$REDIS_SERVICE" | paste -sd:; }
redis_stop() {
    # Sentinels first: they would take the stop for a failure.
    halt TERM sentinel1 sentinel2 sentinel3
    halt TERM redis1 redis2 redis3 redis-cluster1 redis-cluster2 redis-cluster3 redis-cluster4 redis-cluster5 redis-cluster6
}
