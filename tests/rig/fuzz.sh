#!/usr/bin/env bash
# libFuzzer over what reads bytes of others (gateway/core/fuzz, gateway/fuzz), on stable Rust with a C++ compiler.
#
#   tests/rig/fuzz.sh [SECONDS] [TARGET…]      SECONDS for each target (180), all targets unless some are named
#
# The corpus begins with the golden files and samples, and is kept in target/fuzz. What crashes a target is written there, and said. The targets qcow2 and
# config are of the whole gateway: built the first time they take some minutes more.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-180}
shift || true
targets=("$@")
if [[ ${#targets[@]} -eq 0 ]]; then targets=(records tables options requests http upload qcow2 config); fi
triple=$(rustc -vV | sed -n 's/^host: //p')
export CARGO_TARGET_DIR=$PWD/target/fuzz
export RUSTFLAGS='-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
 -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Ccodegen-units=1'
RUSTFLAGS=$(tr -d '\n' <<<"$RUSTFLAGS")
crate_of() {
    case $1 in
    qcow2 | config) echo gateway/fuzz ;;
    *) echo gateway/core/fuzz ;;
    esac
}
for crate in $(for target in "${targets[@]}"; do crate_of "$target"; done | sort -u); do
    cargo build --locked --manifest-path "$crate/Cargo.toml" --target "$triple"
done
status=0
for target in "${targets[@]}"; do
    corpus=$CARGO_TARGET_DIR/corpus/$target
    mkdir -p "$corpus"
    seeds=(gateway/core/tests/golden/*.hex)
    case $target in
    qcow2) seeds=(gateway/fuzz/seeds/*.hex) ;;
    config)
        seeds=()
        cp examples/clonegate.toml "$corpus/seed-example"
        ;;
    esac
    for golden in "${seeds[@]}"; do
        seed=$corpus/seed-$(basename "$golden" .hex)
        [[ -e $seed ]] || tr -cd '0-9a-f' <"$golden" | sed 's/../\\x&/g' | xargs -0 printf '%b' >"$seed"
    done
    begin=$SECONDS
    log=$CARGO_TARGET_DIR/$target.log
    if "$CARGO_TARGET_DIR/$triple/debug/$target" "$corpus" -max_total_time="$seconds" -max_len=16384 -timeout=10 \
        -rss_limit_mb=512 -print_final_stats=1 -artifact_prefix="$CARGO_TARGET_DIR/$target-" >"$log" 2>&1; then
        crashes=0
    else
        crashes=1
        status=1
        tail -n 30 "$log"
    fi
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    echo "fuzz $target: ${executions:-?} inputs in $((SECONDS - begin)) s, $crashes crashes"
done
exit "$status"
