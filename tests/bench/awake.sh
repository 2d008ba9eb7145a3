#!/bin/bash
# Runs a command while every core has a loop of idle priority, which gives way to everything else at once but keeps the core from sleeping:
# on virtual machines, waking a core that sleeps takes longer than a small request.
#
#   tests/bench/awake.sh COMMAND…
set -euo pipefail
loops=()
trap 'kill "${loops[@]}" 2>/dev/null || true' EXIT
for _ in $(seq "$(nproc)"); do
    chrt --idle 0 bash -c 'while :; do :; done' &
    loops+=($!)
done
"$@"
