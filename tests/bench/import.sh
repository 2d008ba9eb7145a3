#!/bin/bash
# Import speed and stored size beside qemu-img, on one image. Prints ratios: above 1 is faster than qemu-img.
#
#   tests/bench/import.sh [IMAGE.raw]     without one, a small Debian is made with debootstrap (needs root)
#
# Both sides end with the data on the disk: clonegate syncs every pack, qemu-img is followed by sync of its output. Each measurement is taken
# ROUNDS times (default 3), alternating, and the best of each side counts.
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${ROUNDS:-3}
work=$(mktemp -d "${TMPDIR:-/tmp}/clonegate-import.XXXXXX")
trap 'rm -rf "$work"' EXIT
cargo build --quiet --release -p clonegate-tests --bin bench-import
bench="$(cargo metadata --format-version 1 --no-deps | python3 -c 'import json,sys; print(json.load(sys.stdin)["target_directory"])')/release/bench-import"

image=${1:-}
if [ -z "$image" ]; then
    image=$work/debian.raw
    debootstrap --variant=minbase --include=systemd-sysv,openssh-server,python3,linux-image-amd64 stable "$work/root" >"$work/log" 2>&1
    truncate -s 4G "$image"
    mkfs.ext4 -q -F -d "$work/root" "$image"
    rm -rf "$work/root"
fi
qemu-img convert -f raw -O qcow2 "$image" "$work/plain.qcow2"
qemu-img convert -c -f raw -O qcow2 "$image" "$work/compressed.qcow2"
allocated=$(($(stat -c '%b * %B' "$image")))

seconds() { # COMMAND…: seconds that it takes
    local begin end
    begin=$(date +%s.%N)
    "$@" >"$work/out" 2>&1 || { cat "$work/out" >&2; exit 1; }
    end=$(date +%s.%N)
    python3 -c "print($end - $begin)"
}
ours() { "$bench" "$1" "$2" "$work/store"; }
theirs() { qemu-img convert -f "$1" -O raw "$2" "$work/out.raw" && sync "$work/out.raw"; }
best() { sort -g "$1" | head -1; }

printf '%-22s %10s %10s %7s %10s %7s\n' image 'clonegate s' 'qemu-img s' ratio stored MiB 'of allocated' | sed 's/ MiB/MiB/'
for case in "raw $image" "qcow2 $work/plain.qcow2" "qcow2 $work/compressed.qcow2"; do
    read -r format path <<<"$case"
    : >"$work/ours"; : >"$work/theirs"
    cat "$path" >/dev/null # both find it in memory
    for _ in $(seq "$rounds"); do
        seconds theirs "$format" "$path" >>"$work/theirs"
        rm -f "$work/out.raw"
        rm -rf "$work/store" # not timed, as above
        seconds ours "$format" "$path" >>"$work/ours"
    done
    stored=$(sed -n 's/.* stored=\([0-9]*\).*/\1/p' "$work/out")
    python3 - "$(basename "$path")" "$(best "$work/ours")" "$(best "$work/theirs")" "$stored" "$allocated" <<'PY'
import sys
name, ours, theirs, stored, allocated = sys.argv[1], *map(float, sys.argv[2:])
print(f"{name:<22} {ours:>10.2f} {theirs:>10.2f} {theirs / ours:>7.2f} {stored / 2**20:>10.1f} {stored / allocated:>7.3f}")
PY
done
rm -rf "$work/store"
/usr/bin/time -f 'peak memory %M KiB, CPU %U s user + %S s system' "$bench" raw "$image" "$work/store"
