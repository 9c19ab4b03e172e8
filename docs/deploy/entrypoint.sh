#!/bin/sh
# Starts a node of a cluster where nobody types `node start` or `node join`: containers, systemd, StatefulSets.
#
#   a used data directory          -> spandrel node start: the directory says which node of which cluster it is
#   an empty one                   -> waits until a peer runs, then spandrel node join PEERS
#   the same, no peer runs, ordinal
#   0 and SPANDREL_FOUND=true      -> spandrel node start: founds the cluster. Take the variable away afterwards
#
# SPANDREL_PEERS       link addresses of all nodes, host:port, separated by blanks; this node's own may be among them
# SPANDREL_PEERS_HTTP  their HTTP addresses, http://host:port: where it is asked whether a peer runs
# SPANDREL_ORDINAL     this node's ordinal; default: what follows the last `-` of the host name
# SPANDREL_DATA_DIR    as the program reads it; every other SPANDREL_* setting and all arguments go to the program
# SPANDREL_BINARY      the program, `spandrel`
set -eu

binary=${SPANDREL_BINARY:-spandrel}
data=${SPANDREL_DATA_DIR:-./spandrel-data}
peers=${SPANDREL_PEERS:-}
peers_http=${SPANDREL_PEERS_HTTP:-}
host=${HOSTNAME:-$(cat /proc/sys/kernel/hostname)}
ordinal=${SPANDREL_ORDINAL:-${host##*-}}
# The program reads this as one of its settings.
export SPANDREL_DATA_DIR="$data"

say() {
    echo "entrypoint: $*" >&2
}

# A directory is used once the settings of a cluster are in it: one in which a join failed has an identity alone.
is_used() {
    [ -d "$data/raft" ] && [ -n "$(ls -A "$data/raft")" ]
}

# True unless it is certain that nobody runs there: whoever hangs or refuses runs.
may_run() {
    said=$("$binary" query services --addr "$1" --timeout 3s 2>&1 >/dev/null) && return 0
    case $said in
        *"Connection refused"* | *"the name is not known"*) return 1 ;;
        *) say "$1 does not serve: $said" ;;
    esac
}

a_peer_runs() {
    for peer in $peers_http; do
        if may_run "$peer"; then
            return 0
        fi
    done
    return 1
}

if is_used; then
    say "$data is used: start"
    exec "$binary" node start "$@"
fi

if [ -z "$peers" ] || [ -z "$peers_http" ]; then
    say "$data is empty: SPANDREL_PEERS and SPANDREL_PEERS_HTTP must name the nodes"
    exit 1
fi

waits=false
until a_peer_runs; do
    if [ "${SPANDREL_FOUND:-false}" = true ] && [ "$ordinal" = 0 ]; then
        say "$data is empty and no peer runs: found a cluster"
        exec "$binary" node start "$@"
    fi
    if [ "$waits" = false ]; then
        say "$data is empty and no peer runs: waiting for one (ordinal 0 founds, with SPANDREL_FOUND=true)"
        waits=true
    fi
    sleep 1
done
say "$data is empty: join $peers"
# shellcheck disable=SC2086 # the addresses are words
exec "$binary" node join $peers "$@"
