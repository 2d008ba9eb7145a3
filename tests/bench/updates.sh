#!/bin/bash
# Update of many idle clones to another version, and back. Prints seconds.
#
#   tests/bench/updates.sh PROGRAM [COUNT]
#
# PROGRAM is a built `clonegate`, on a local directory with durable writes. Loopback only; ends only what it started.
set -euo pipefail
program=$(realpath "$1") count=${2:-1000}
work=$(mktemp -d "${TMPDIR:-/tmp}/clonegate-updates.XXXXXX")
port=$((20000 + RANDOM % 20000))
export CLONEGATE_SERVER=http://127.0.0.1:$port
"$program" up --data "$work/data" --clones 0 --listen "127.0.0.1:$port" --nbd "" >"$work/log" 2>&1 &
pid=$!
trap 'kill -INT $pid 2>/dev/null || true; wait $pid 2>/dev/null || true; rm -rf "$work"' EXIT
for _ in $(seq 200); do curl -sf -o /dev/null "$CLONEGATE_SERVER/healthz" && break; sleep 0.1; done
for version in 1 2; do
  head -c 16M /dev/zero >"$work/image.raw"
  head -c 1M /dev/urandom | dd of="$work/image.raw" conv=notrunc status=none
  "$program" template import t "$work/image.raw" --publish >/dev/null
done
"$program" clone create c --template t:1 --count "$count" >/dev/null
timed() { # timed WHAT COMMAND…
  local what=$1 begin end; shift
  begin=$(date +%s.%N); "$@" >"$work/out"; end=$(date +%s.%N)
  printf '%-10s %s s  (%s)\n' "$what" "$(echo "scale=2; ($end - $begin) / 1" | bc)" "$(head -1 "$work/out")"
}
timed "dry run" "$program" clone update --template t:2 --dry-run
timed update "$program" clone update --template t:2
timed "roll back" "$program" update rollback t
timed fsck "$program" fsck --grace 0s
