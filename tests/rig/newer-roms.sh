#!/usr/bin/env bash
# Fetches boot loaders and firmware newer than those of Debian 12 for the tests, without installing anything: iPXE of Debian unstable,
# OVMF of Debian 13. The package lists live below FOLDER; the system's apt is not touched.
#
#   tests/rig/newer-roms.sh FOLDER      then: CLONEGATE_ROMS=FOLDER cargo test -p clonegate-tests --test clients_newer
set -euo pipefail
folder=$(realpath -m "${1:?usage: newer-roms.sh FOLDER}")
apt=$folder/apt
mkdir -p "$apt"/{lists/partial,cache/archives/partial}
mirror=$({ cat /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources} 2>/dev/null || true; } |
    sed -nE 's/^URIs?: *([^ ]+).*/\1/p; s/^deb (\[[^]]*\] )?([^ ]+).*/\2/p' | head -n 1)
for suite in trixie sid; do
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${mirror:-http://deb.debian.org/debian} $suite main"
done >"$apt/sources.list"
private=(-q -o "Dir::Etc::SourceList=$apt/sources.list" -o Dir::Etc::SourceParts=/dev/null -o "Dir::State::Lists=$apt/lists"
    -o "Dir::Cache=$apt/cache" -o Dir::State::Status=/dev/null -o APT::Sandbox::User=root)
apt-get "${private[@]}" update >/dev/null

take() { # PACKAGE SUITE FILE…: copies files of a package into the folder
    local version
    version=$(apt-cache "${private[@]}" madison "$1" | awk -v suite=" $2/" 'index($0, suite) { print $3; exit }')
    (cd "$apt" && apt-get "${private[@]}" download "$1=$version" >/dev/null && dpkg-deb -x "$1"_*.deb "$apt/$1")
    for file in "${@:3}"; do cp "$apt/$1/$file" "$folder/"; done
    echo "$1 $version"
}
take ipxe sid usr/lib/ipxe/ipxe-amd64.efi
mv "$folder/ipxe-amd64.efi" "$folder/ipxe.efi"
take ipxe-qemu sid usr/share/qemu/pxe-virtio.rom
take ovmf trixie usr/share/OVMF/OVMF_CODE_4M.fd usr/share/OVMF/OVMF_VARS_4M.fd
rm -rf "$apt"
