# An S3 server over a plain folder. It checks signatures and their expiry, as S3 does.
# shellcheck shell=bash
s3_install() {
    [ -x "$DIST/versitygw-$S3_VERSION" ] && return
    command -v go >/dev/null || die 'install: go is needed to build the S3 server'
    say "install: $S3_MODULE $S3_VERSION (builds for some minutes)"
    # The module's sum is ours; its own go.sum, part of what the sum covers, has those of all it needs.
    local sum; sum=$(go mod download -json "$S3_MODULE@$S3_VERSION" | sed -n 's/.*"Sum": "\(.*\)".*/\1/p')
    [ "$sum" = "$(<"$CLUSTER/lock/s3.sum")" ] || die "install: $S3_MODULE's sum differs from lock/s3.sum"
    GOBIN=$DIST/go go install "$S3_MODULE/cmd/versitygw@$S3_VERSION"
    mv "$DIST/go/versitygw" "$DIST/versitygw-$S3_VERSION"
}
s3_processes() { echo "s3 127.0.0.1:$S3_PORT"; }
s3_configure() {
    local NODE=$STACK/data/s3
    mkdir -p "$NODE"/{objects,iam}
    render s3.env "$STACK/conf/s3.env"
}
s3_start() {
    s3_configure
    # shellcheck disable=SC2016  # Expanded by the shell that is started.
    # By file and environment: a key in the arguments would show in every list of processes.
    spawn s3 "127.0.0.1:$S3_PORT" bash -c 'set -a; . "$1"; exec "$2" --quiet posix "$3"' s3 "$STACK/conf/s3.env" \
        "$DIST/versitygw-$S3_VERSION" "$STACK/data/s3/objects"
}
s3_ready() { await s3 'port open' port_open "127.0.0.1:$S3_PORT"; }
s3_stop() { halt TERM s3; }
