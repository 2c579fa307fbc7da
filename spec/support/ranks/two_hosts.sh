#!/bin/sh
# two_hosts.sh — two hosts made of network namespaces, NAME-a and NAME-b, each with a name, a
# loopback and one device of its own; processes of one reach the other by that alone.
#
#   two_hosts.sh up NAME               joined by a pair of virtual devices
#   two_hosts.sh up NAME WIRE MS       joined by WIRE (wire.c, compiled), which delays by MS each way
#   two_hosts.sh run NAME N COMMAND…   mpirun on both, N ranks on each, over TCP
#   two_hosts.sh cut NAME              the device of the first goes down; of the other, no more comes
#   two_hosts.sh on NAME HOST COMMAND…
#   two_hosts.sh down NAME
#
# NAME ends with the process that it is for: of those that are no more, `up` clears away what is
# left. In place of ssh mpirun starts its daemons with `two_hosts.sh agent HOST COMMAND`.
set -e
what=$1 name=$2
shift 2
on() { # HOST COMMAND…
  host=$1
  shift
  ip netns exec "$host" unshare --uts sh -c 'hostname "$0"; exec "$@"' "$host" "$@"
}
case $what in
  up)
    for left in /run/netns/pyr*-a; do
      owner=${left#/run/netns/pyr}
      owner=${owner%-a}
      case $owner in '' | *[!0-9]*) continue ;; esac
      [ -e "/proc/$owner" ] || sh "$0" down "pyr$owner"
    done
    ip netns add "$name-a" && ip netns add "$name-b"
    if [ $# = 0 ]; then
      ip link add wire netns "$name-a" type veth peer name wire netns "$name-b"
    else
      "$1" "/run/netns/$name-a" "/run/netns/$name-b" "$2" "${name##*[!0-9]}"
    fi
    for end in a:1 b:2; do
      space=$name-${end%:*}
      ip -n "$space" addr add "10.77.0.${end#*:}/24" dev wire
      ip -n "$space" link set wire up
      ip -n "$space" link set lo up
      # mpirun waits for its daemon on a host that has gone for as long as its socket does: half a
      # minute, and not a quarter of an hour
      ip netns exec "$space" sysctl -qw net.ipv4.tcp_retries2=4
    done ;;
  run)
    n=$1
    shift
    on "$name-a" mpirun --mca plm_rsh_agent "sh $0 agent" --mca btl tcp,self \
      --host "$name-a:$n,$name-b:$n" -n $((2 * n)) "$@" ;;
  cut) ip -n "$name-a" link set wire down ;;
  on) on "$name-$1" sh -c "shift; exec \"\$@\"" "$@" ;;
  agent) # NAME is the host here
    on "$name" sh -c "$*" ;;
  down)
    for space in "$name-a" "$name-b"; do
      ip netns pids "$space" 2> /dev/null | xargs -r kill -9 2> /dev/null || true
      ip netns del "$space" 2> /dev/null || true
    done ;;
esac
