#!/usr/bin/env bash
# Makes a Debian 12 disk with systemd, for the whole way of a boot: make-debian-image.sh DIRECTORY
#
# DIRECTORY/debian.raw: an MBR with one ext4 partition (label DEBIANROOT), made by debootstrap and then by examples/boot/nbd-root-debian.sh
# and nbd-root-dracut.sh, as an operator would. /boot has vmlinuz, initrd.img (initramfs-tools) and initramfs.img (dracut). When it is
# up it says DEBIAN-OK … on the serial line (debian-marker.sh) and powers off. Packages are kept in DIRECTORY/debs.
# Needs root for chroot and mount.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin" LC_ALL=C DEBIAN_FRONTEND=noninteractive
here=$(dirname "$(readlink -f "$0")")
out=$(readlink -f "${1:?DIRECTORY}")
examples=$(readlink -f "$here/../../examples/boot")
work=$(mktemp -d "$out/make.XXXXXX")
root=$work/root
cleanup() {
    mountpoint -q "$root/proc" && umount "$root/proc"
    rm -rf "$work"
}
trap cleanup EXIT
label=DEBIANROOT
packages=linux-image-cloud-amd64,systemd-sysv,udev,dbus,kmod,initramfs-tools,zstd,nbd-client,iproute2,isc-dhcp-client,ifupdown,netbase
packages+=,dracut-core,dracut-network,procps

mirror() { # the first mirror that this machine uses itself
    sed -nE 's/^URIs?: *([^ ]+).*/\1/p; s/^deb (\[[^]]*\] )?([^ ]+).*/\2/p' /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | head -n 1
}

install_debian() {
    mkdir -p "$root/etc/dpkg/dpkg.cfg.d" "$out/debs"
    printf 'path-exclude=/usr/share/%s/*\n' doc man locale info lintian >"$root/etc/dpkg/dpkg.cfg.d/slim"
    # The small Linux may have the kernel's package already.
    cp -n "$out"/linux-image-*.deb "$out/debs/" 2>/dev/null || true
    if ! debootstrap --variant=minbase --include="$packages" --cache-dir="$out/debs" bookworm "$root" "$(mirror)" >"$work/debootstrap.log" 2>&1; then
        tail -n 30 "$work/debootstrap.log" "$root/debootstrap/debootstrap.log" >&2 || true
        return 1
    fi
}

configure() {
    echo debian >"$root/etc/hostname"
    printf '127.0.0.1 localhost\n127.0.1.1 debian\n' >"$root/etc/hosts"
    echo "LABEL=$label / ext4 defaults,noatime 0 0" >"$root/etc/fstab"
    sed -i 's/^#\? *COMPRESS=.*/COMPRESS=zstd/' "$root/etc/initramfs-tools/initramfs.conf"
    install -m755 "$here/debian-marker.sh" "$root/usr/local/sbin/debian-marker"
    cat >"$root/etc/systemd/system/debian-marker.service" <<'UNIT'
[Unit]
Description=Says that the system is up
After=multi-user.target network.target
[Service]
Type=oneshot
ExecStart=/usr/local/sbin/debian-marker
StandardOutput=tty
TTYPath=/dev/ttyS0
[Install]
WantedBy=graphical.target
UNIT
    mkdir -p "$root/etc/systemd/system/graphical.target.wants" "$root/state" "$root/payload"
    ln -s ../debian-marker.service "$root/etc/systemd/system/graphical.target.wants/"
    local unit
    # No login on the serial line: it hangs up whoever writes there when it starts, and the marker is lost.
    for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
        serial-getty@ttyS0.service; do
        ln -s /dev/null "$root/etc/systemd/system/$unit"
    done
    openssl enc -aes-128-ctr -K 000102030405060708090a0b0c0d0e0f -iv 00 -in /dev/zero 2>/dev/null | head -c 8388608 >"$root/payload/random" || true
    (cd "$root/payload" && sha256sum random >sums)
}

in_root() { # SCRIPT ARGUMENT…: runs one of the examples in the new system
    local script=$1
    shift
    mkdir -p "$root/tmp/boot"
    install -m755 "$examples"/nbd-root-* "$root/tmp/boot/"
    if ! chroot "$root" "/tmp/boot/$script" "$@" >"$work/script.log" 2>&1; then
        tail -n 30 "$work/script.log" >&2
        return 1
    fi
    rm -r "$root/tmp/boot"
}

disk() {
    local disk=$work/disk.raw used
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin
    : >"$root/etc/machine-id"
    used=$(du -sm "$root" | cut -f1)
    truncate -s "$((used + used / 8 + 96))M" "$work/root.img"
    mke2fs -q -F -t ext4 -L "$label" -U c10ec10e-0000-4000-8000-000000000002 -m 1 -d "$root" "$work/root.img"
    truncate -s "$(($(stat -c %s "$work/root.img") + 2097152))" "$disk"
    printf 'label: dos\nunit: sectors\nstart=2048, size=%d, type=83\n' "$(($(stat -c %s "$work/root.img") / 512))" |
        sfdisk -q --no-reread --no-tell-kernel "$disk"
    dd if="$work/root.img" of="$disk" bs=1M seek=1 conv=notrunc,sparse status=none
}

install_debian
configure
mount -t proc proc "$root/proc"
in_root nbd-root-debian.sh
in_root nbd-root-dracut.sh /boot/initramfs.img
umount "$root/proc"
for file in "$root"/boot/vmlinuz-*; do ln -s "${file##*/}" "$root/boot/vmlinuz"; done
for file in "$root"/boot/initrd.img-*; do ln -s "${file##*/}" "$root/boot/initrd.img"; done
disk
mv "$work/disk.raw" "$out/debian.raw"
chmod 644 "$out/debian.raw"
echo "debian.raw: $(stat -c %s "$out/debian.raw") bytes, $(du -k "$out/debian.raw" | cut -f1) KiB allocated"
