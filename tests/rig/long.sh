#!/usr/bin/env bash
# The reliability tests for longer than CI does, one after the other, and their figures.
#
#   tests/rig/long.sh [N]      N times the seeds, schedules and kills of a usual run (25 unless said otherwise, which makes
#                              1,625 seeds and 200 kills; about a quarter of an hour on two cores, besides compiling)
set -euo pipefail
cd "$(dirname "$0")/../.."
export CLONEGATE_LONG=${1:-25} RUST_BACKTRACE=0
log=target/long-$CLONEGATE_LONG.log
mkdir -p target
: >"$log"
# Optimised, unlike usual tests: what runs for an hour may be compiled for some minutes.
fast=(--config 'profile.dev.package.clonegate.opt-level=2' --config 'profile.dev.package.clonegate-tests.opt-level=2')
for test in delta process; do
    cargo test "${fast[@]}" --locked -p clonegate-tests --test "$test" -- --nocapture --test-threads 2 2>&1 | tee -a "$log"
done
echo "--- figures, CLONEGATE_LONG=$CLONEGATE_LONG"
grep -E '^(crash points|damaged|simulation|fencing|state machine|kill -9|one order)' "$log"
