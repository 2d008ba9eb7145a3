#!/bin/bash
# The delta map and what takes no time however large a delta is: lookups, memory, opening, discarding, reset, snapshot. Prints Markdown.
#
#   tests/bench/map.sh [MIB]     MIB: the largest delta, 10240 unless said otherwise
#
# Builds and runs `bench-map`, which goes through the delta engine itself over a directory below TMPDIR (about 1.2 times MIB of room, removed
# at the end). PROFILE=dev measures an unoptimised build, which says nothing but that it works. Ends after LIMIT seconds (170).
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d "${TMPDIR:-/tmp}/clonegate-map.XXXXXX")
trap 'rm -rf "$work"' EXIT
profile=${PROFILE:-release}
cargo build --quiet --profile "$profile" -p clonegate-tests --bin bench-map
target=$(cargo metadata --format-version 1 --no-deps | python3 -c 'import json,sys; print(json.load(sys.stdin)["target_directory"])')
[ "$profile" = dev ] && profile=debug
timeout "${LIMIT:-170}" "$target/$profile/bench-map" "$work" "${1:-10240}"
