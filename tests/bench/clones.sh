#!/bin/bash
# Creation of many clones beside `qemu-img create -b`. Prints a ratio: above 1 is faster than qemu-img.
#
#   tests/bench/clones.sh PROGRAM [COUNT] [ROUNDS]
#
# PROGRAM is a built `clonegate`. Ours are durable when the command returns; qemu-img syncs nothing, so it has the advantage. Rounds
# alternate, and each side's best counts. Loopback only; ends only what it started.
set -euo pipefail
program=$(realpath "$1") count=${2:-1000} rounds=${3:-3}
work=$(mktemp -d "${TMPDIR:-/tmp}/clonegate-clones.XXXXXX")
port=$((20000 + RANDOM % 20000))
export CLONEGATE_SERVER=http://127.0.0.1:$port
"$program" up --data "$work/data" --clones 0 --listen "127.0.0.1:$port" --nbd "" >"$work/log" 2>&1 &
pid=$!
trap 'kill -INT $pid 2>/dev/null || true; wait $pid 2>/dev/null || true; rm -rf "$work"' EXIT
for _ in $(seq 200); do curl -sf -o /dev/null "$CLONEGATE_SERVER/healthz" && break; sleep 0.1; done

qemu-img create -q -f qcow2 "$work/base.qcow2" 16M
seconds() { # seconds COMMAND…
  local begin end
  begin=$(date +%s.%N); "$@" >/dev/null; end=$(date +%s.%N)
  echo "$end - $begin" | bc
}
theirs() { for n in $(seq "$count"); do qemu-img create -q -f qcow2 -F qcow2 -b "$work/base.qcow2" "$work/$1-$n.qcow2"; done; }
ours() { "$program" clone create "$1" --template demo --count "$count"; }
best_ours=999999 best_theirs=999999
for round in $(seq "$rounds"); do
  t=$(seconds theirs "q$round"); best_theirs=$(printf '%s\n%s\n' "$t" "$best_theirs" | sort -n | head -1)
  bytes=$(du -sk "$work" --exclude=data | cut -f1)
  rm -f "$work/q$round"-*.qcow2
  t=$(seconds ours "c$round"); best_ours=$(printf '%s\n%s\n' "$t" "$best_ours" | sort -n | head -1)
done
made=$((count * rounds))
stored=$(find "$work/data" -type f \( -path '*/catalog/clone/*' -o -path '*/slots/*' \) -printf '%s\n' | awk '{s+=$1} END {print s}')
echo "clones           $count, best of $rounds rounds"
echo "clonegate        $best_ours s, durable, $((stored / made)) bytes a clone"
echo "qemu-img -b      $best_theirs s, not synced, $((bytes * 1024 / count)) bytes a clone"
echo "ratio            $(echo "scale=2; $best_theirs / $best_ours" | bc)"
