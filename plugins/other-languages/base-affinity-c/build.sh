#!/bin/bash
# Builds the policy and makes a component of it: build.sh DIRECTORY. Needs clang and wasm-ld (Debian: clang lld), and
# `clonegate-policy` or `clonegate`, named by $PACK, to make the component.
#
# generated/ is what wit-bindgen 0.60.0 makes of the WIT package:
#     cargo install wit-bindgen-cli --version 0.60.0
#     wit-bindgen c wit --world placement-policy --out-dir plugins/other-languages/base-affinity-c/generated
set -euo pipefail
out=$(realpath "$1")
cd "$(dirname "$0")"
pack=${PACK:-clonegate plugin pack}
clang=${CLANG:-clang}
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
flags=(--target=wasm32-unknown-unknown -std=c11 -Os -ffreestanding -nostdlibinc -mbulk-memory -fvisibility=hidden
    -Wall -Wextra -Werror -Iruntime -Igenerated)
objects=()
for source in policy.c settings.c runtime/runtime.c generated/placement_policy.c; do
    object=$made/$(basename "$source" .c).o
    extra=()
    [[ $source == generated/* ]] && extra=(-Wno-unused-parameter -Wno-unused-variable)
    "$clang" "${flags[@]}" "${extra[@]}" -c "$source" -o "$object"
    objects+=("$object")
done
wasm-ld --no-entry --gc-sections --strip-debug --stack-first -z stack-size=65536 \
    "${objects[@]}" generated/placement_policy_component_type.o -o "$made/core.wasm"
case $pack in
*"plugin pack") $pack "$made/core.wasm" --out "$out/base-affinity-c.wasm" ;;
*) $pack "$made/core.wasm" "$out/base-affinity-c.wasm" ;;
esac
