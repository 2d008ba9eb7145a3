#!/bin/bash
# What a decision of a plugin costs, beside the same question to the built-in rule in native code.
#
#   tests/bench/policy.sh PROGRAM [RUNS] [ROUNDS]
#
# PROGRAM is a `clonegate` built with --release. Each call is as in production: a fresh instance with fuel, deadline and memory limit,
# settings read, question written into it, answer read and dropped. The question has 20 datastores and 100 bases, two labels each;
# reset policies are asked about one clone. Rounds go over all plugins, and each plugin's best round counts, since what else
# the machine does can only add.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
program=$(realpath "$1") runs=${2:-3000} rounds=${3:-3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for _ in $(seq "$rounds"); do
    for component in "$here"/plugins/components/*.wasm; do
        "$program" plugin bench "$component" --runs "$runs" --output json >"$work/one"
        name=$(basename "$component" .wasm)
        python3 - "$work/one" "$name" >>"$work/lines" <<'PY'
import json, sys
m = json.load(open(sys.argv[1]))
print(sys.argv[2], m["median_us"], m["p99_us"], m["native_median_us"], m["fuel"], m["memory"] >> 10)
PY
    done
done
echo "| plugin | median, µs | p99, µs | built-in rule, µs | fuel | memory, KiB |"
echo "|---|---|---|---|---|---|"
sort -k1,1 -k2,2n "$work/lines" | awk '!seen[$1]++ { printf "| `%s` | %.1f | %.0f | %.1f | %d | %d |\n", $1, $2, $3, $4, $5, $6 }'
