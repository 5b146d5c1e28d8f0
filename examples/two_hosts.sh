#!/usr/bin/env bash
# Pretrain on several hosts without a scheduler: the same command on each of them, in any order, and again after
# whatever happened.
#
#   HEAD=10.0.0.1 NODES=2 RANK=0 examples/two_hosts.sh base data.path=/shared/shards --out /shared/run    # on 10.0.0.1
#   HEAD=10.0.0.1 NODES=2 RANK=1 examples/two_hosts.sh base data.path=/shared/shards --out /shared/run    # on the other
#
# HEAD      the host with RANK 0, by its address on the network that gradients are to travel
# NODES     how many hosts; 1:2 goes on with one when the other is gone (with RESTARTS, and never without HEAD)
# RANK      0 on HEAD, 1, 2, … on the others
# PROCS     processes of a host: "gpu" is one a GPU; on CPUs say PROCS=1 and --device cpu --threads CORES
# RESTARTS  after a process that died; 0 with --time-limit
# PORT      on HEAD; runs side by side need different ones
#
# What each line is for, and what happens when something fails: docs/distributed.md.
set -euo pipefail
: "${HEAD:?is not set: the address of the host with RANK=0}"
: "${NODES:?is not set: how many hosts}"
: "${RANK:?is not set: 0 on HEAD; 1, 2, … on the others}"
PROCS=${PROCS:-gpu} RESTARTS=${RESTARTS:-3} PORT=${PORT:-29500}

head=$(getent ahostsv4 "$HEAD" | awk 'NR == 1 { print $1 }') || true
if [[ -z $head || ($head == 127.* && $HEAD != 127.*) ]]; then
    # Debian gives a host's own name 127.0.1.1, where no other host finds it.
    echo "two_hosts.sh: HEAD=$HEAD is ${head:-no address} here; give its address on the hosts' network" >&2
    exit 2
fi
# This host's own address and interface on the way there. PyTorch would take what the host's name resolves to, which
# need not resolve, nor to an address that others reach; gloo would take loopback then.
ADDRESS=${ADDRESS:-$(ip -o route get "$head" | sed -n 's/.* src \([^ ]*\).*/\1/p')}
IFACE=${IFACE:-$(ip -o addr show to "$ADDRESS" | awk 'NR == 1 { print $2 }')}
if [[ $RANK == 0 && $ADDRESS != "$head" ]]; then
    echo "two_hosts.sh: RANK=0 is for HEAD=$HEAD, and this host is $ADDRESS; give it another RANK" >&2
    exit 2
fi
export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$IFACE}
# From a signal until workers are killed: a step and a save must fit. PyTorch's own value is 30.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-300}
# A host that comes back waits for ever for an address which the others keep to themselves, as launchers and processes
# share a meeting place; with restarts, have them meet anew each time.
[[ $RESTARTS == 0 ]] || export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# is_host: who keeps the meeting place; else it is guessed from names. read_timeout: how long HEAD may come later.
exec torchrun \
    --nnodes "$NODES" --nproc-per-node "$PROCS" --max-restarts "$RESTARTS" \
    --rdzv-backend c10d --rdzv-id "modernbert-$PORT" --rdzv-endpoint "$head:$PORT" --local-addr "$ADDRESS" \
    --rdzv-conf "is_host=$([[ $RANK == 0 ]] && echo 1 || echo 0),read_timeout=600,join_timeout=600" \
    -m modernbert pretrain "$@"
