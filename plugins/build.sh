#!/bin/bash
# Builds the plugins into plugins/components/*.wasm, which the gateway embeds and which are committed.
#
#   plugins/build.sh            build all and write the components
#   plugins/build.sh --check    build all and fail when a committed component is not what the source builds
#
# Takes `rustup target add wasm32-unknown-unknown` when it is there, else Debian's toolchain
# (apt-get install rustc-web cargo-web rust-web-src lld). Exit 77: neither is there.
# The bytes do not depend on where the checkout is. They do depend on the compiler; plugins/components/TOOLCHAIN says which
# one made them, and with another one --check compares what the components do (tests/tests/components.rs), not their bytes.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
out=plugins/components
target=wasm32-unknown-unknown
mode=write
[ "${1:-}" = --check ] && mode=check

host_cargo=${CARGO:-cargo}
if [ -d "$(rustc --print sysroot 2>/dev/null)/lib/rustlib/$target" ]; then
    cargo=(cargo) rustc=rustc std=()
elif [ -x /usr/bin/rustc ] && [ -d "$(/usr/bin/rustc --print sysroot)/lib/rustlib/src/rust/library" ] && command -v wasm-ld >/dev/null; then
    cargo=(env PATH=/usr/bin:/bin RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=wasm-ld /usr/bin/cargo)
    rustc=/usr/bin/rustc std=(-Zbuild-std=std,panic_abort)
else
    echo "plugins/build.sh: no wasm32 toolchain: rustup target add $target, or apt-get install rustc-web cargo-web rust-web-src lld" >&2
    exit 77
fi
toolchain=$($rustc --version)

# Where sources lie must not show in panic messages: the checkout, the registry and the standard library get fixed names.
cargo_home=${CARGO_HOME:-$HOME/.cargo}
sysroot=$($rustc --print sysroot)
# A small stack keeps the memory of a call small: there are fewer pages to clean after it. And it begins with what a question over a
# hundred bases takes: to grow is a system call or two, in each call.
export CARGO_ENCODED_RUSTFLAGS="-Clink-arg=-zstack-size=131072"$'\x1f'"-Clink-arg=--initial-memory=262144"$'\x1f'"--remap-path-prefix=$root=/clonegate"$'\x1f'"--remap-path-prefix=$cargo_home=/cargo"$'\x1f'"--remap-path-prefix=$(readlink -f "$sysroot/lib/rustlib/src/rust" 2>/dev/null || echo /rust)=/rust"$'\x1f'"--remap-path-prefix=$sysroot/lib/rustlib/src/rust=/rust"
host_target=${CARGO_TARGET_DIR:-$root/target}
export CARGO_TARGET_DIR=${CLONEGATE_PLUGIN_TARGET:-$host_target/plugins}
packages=()
for crate in plugins/*/Cargo.toml; do
    packages+=(-p "$(sed -n 's/^name = "\(.*\)"/\1/p' "$crate" | head -1)")
done
"${cargo[@]}" build --locked --profile plugin --target $target "${std[@]}" "${packages[@]}" >&2
unset CARGO_ENCODED_RUSTFLAGS
cores=$CARGO_TARGET_DIR/$target/plugin
export CARGO_TARGET_DIR=$host_target

made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
"$host_cargo" build --quiet --workspace --bin clonegate-policy >&2
pack=$(realpath "$host_target/debug/clonegate-policy")
for crate in plugins/*/Cargo.toml; do
    package=$(sed -n 's/^name = "\(.*\)"/\1/p' "$crate" | head -1)
    "$pack" pack "$cores/${package//-/_}.wasm" "$made/$(basename "$(dirname "$crate")").wasm"
done
# Policies in other languages need clang; without it the committed components stand.
clang=$(command -v clang || compgen -c clang- | grep -E '^clang-[0-9]+$' | sort -t- -k2 -n | tail -1 || true)
if [ -n "$clang" ]; then
    toolchain+=$'\n'$("$clang" --version | head -1)
else
    echo "plugins/build.sh: no clang (apt-get install clang): policies in C are not built" >&2
    toolchain+=$'\n'$(sed -n 2p $out/TOOLCHAIN)
fi
for other in plugins/other-languages/*/build.sh; do
    if [ -n "$clang" ]; then
        CLANG=$clang PACK="$pack pack" "$other" "$made"
    else
        cp "$out/$(basename "$(dirname "$other")").wasm" "$made/"
    fi
done

if [ $mode = write ]; then
    mkdir -p $out
    cp "$made"/*.wasm $out/
    echo "$toolchain" > $out/TOOLCHAIN
    ls -l $out
    exit 0
fi
if [ "$toolchain" != "$(cat $out/TOOLCHAIN)" ]; then
    echo "plugins/build.sh: built by $toolchain, committed ones by $(cat $out/TOOLCHAIN): comparing what they do" >&2
    CLONEGATE_COMPONENTS=$made "$host_cargo" test --quiet --workspace --test components
    exit
fi
failed=0
for component in "$made"/*.wasm; do
    cmp "$component" "$out/$(basename "$component")" || failed=1
done
[ $failed = 0 ] && echo "plugins/build.sh: the committed components are what the source builds" || {
    echo "plugins/build.sh: run plugins/build.sh and commit plugins/components" >&2
    exit 1
}
