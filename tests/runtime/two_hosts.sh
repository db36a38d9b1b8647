#!/usr/bin/env bash
# two_hosts.sh COMMAND...: runs a command on two hosts, network namespaces joined by a cable, with HOST=0 and HOST=1 and the
# addresses 10.77.0.1 and 10.77.0.2 on the interface "cable". Nothing is left: the namespaces end with their processes.
# Start it in a network namespace of its own: unshare --map-root-user --net two_hosts.sh ...
set -euo pipefail

here=()
trap 'kill "${here[@]}" 2>/dev/null || true' EXIT
for host in 0 1; do
    unshare --net sleep infinity &
    here+=($!)
done
for pid in "${here[@]}"; do
    until [ "$(readlink "/proc/$pid/ns/net")" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
done
ip link add cable netns "${here[0]}" type veth peer name cable netns "${here[1]}"
for host in 0 1; do
    inside=(nsenter --net --target "${here[$host]}")
    "${inside[@]}" ip address add "10.77.0.$((host + 1))/24" dev cable
    "${inside[@]}" ip link set cable up
    "${inside[@]}" ip link set lo up
done
commands=()
for host in 0 1; do
    HOST=$host nsenter --net --target "${here[$host]}" "$@" &
    commands+=($!)
done
code=0
for pid in "${commands[@]}"; do wait "$pid" || code=$?; done
exit "$code"
