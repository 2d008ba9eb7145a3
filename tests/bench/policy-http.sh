#!/bin/bash
# What plugins that never return cost those who read: random ranges of one clone while others are made, once with the default policy
# alone and once with looping plugins before it. Prints the ratio of the p99; 1 is unharmed.
#
#   tests/bench/policy-http.sh PROGRAM [ROUNDS] [SECONDS] [LOOPING]
#
# PROGRAM is a `clonegate` built with --release. A plugin that fails five times in a row is left alone for a while, so one looping plugin
# would loop five times only: LOOPING of them stand in the chain. Every round is a gateway of its own, on an empty directory;
# rounds alternate. Clones are made all the time in both. Loopback only; ends only what it started.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
program=$(realpath "$1") rounds=${2:-3} seconds=${3:-5} looping=${4:-40}
work=$(mktemp -d "${TMPDIR:-/tmp}/clonegate-policy.XXXXXX")
pid= maker=
trap 'touch "$work/stop"; kill $maker $pid 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$work"' EXIT

round() { # NAME LOOPING: a line with requests/s, p50 and p99 in µs, errors, clones made, calls that were ended, KiB before and after
    local name=$1 count=$2 port=$((20000 + RANDOM % 20000)) chain= n before
    rm -rf "$work/data" "$work/stop"
    for n in $(seq "$count"); do chain+="\"looping-$n\", "; done
    export CLONEGATE_SERVER=http://127.0.0.1:$port
    CLONEGATE_POLICY_PLACEMENT="[$chain\"default\"]" "$program" up --data "$work/data" --clones 0 \
        --listen "127.0.0.1:$port" --nbd "" >"$work/log" 2>&1 &
    pid=$!
    for _ in $(seq 200); do curl -sf -o /dev/null "$CLONEGATE_SERVER/healthz" && break; sleep 0.1; done
    # Before anything is recorded: what was recorded would refuse them.
    for n in $(seq "$count"); do
        "$program" plugin install "$here/gateway/policy-host/tests/golden/looping.wasm" --name "looping-$n" >/dev/null
    done
    "$program" clone create read --template demo >/dev/null
    before=$(awk '/^VmRSS/ { print $2 }' /proc/$pid/status)
    (n=0; while [ ! -e "$work/stop" ]; do "$program" clone create "c-$n" --template demo >/dev/null; n=$((n + 1)); done) &
    maker=$!
    "$program" bench http "$CLONEGATE_SERVER/v1/clones/read/disk" --connections 16 --block 4KiB --time "${seconds}s" --threads 1 \
        --output json >"$work/report"
    touch "$work/stop"
    wait $maker
    "$program" plugin decisions --slot placement --limit 10000 >"$work/decisions"
    python3 - "$work/report" "$work/decisions" "$name" "$before" "$(awk '/^VmRSS/ { print $2 }' /proc/$pid/status)" <<'PY' | tee -a "$work/lines"
import json, sys
r = json.load(open(sys.argv[1]))
made = [json.loads(line) for line in open(sys.argv[2])]
ended = sum("trap" in a["outcome"] for d in made for a in d["chain"])
print(sys.argv[3], round(r["per_second"]), round(r["p50_us"]), round(r["p99_us"]), r["errors"], len(made), ended, *sys.argv[4:])
PY
    kill -INT $pid
    wait $pid || true
    pid=
}
echo "policy requests/s p50 p99 errors clones ended KiB-before KiB-after"
for _ in $(seq "$rounds"); do
    round default 0
    round looping "$looping"
done
python3 - "$work/lines" <<'PY'
import statistics, sys
rows = [line.split() for line in open(sys.argv[1])]
of = lambda name, column: statistics.median(float(r[column]) for r in rows if r[0] == name)
print(f"ratio of the p99, looping to default: {of('looping', 3) / of('default', 3):.2f}; of requests/s: {of('looping', 1) / of('default', 1):.2f}")
PY
