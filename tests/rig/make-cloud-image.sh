#!/usr/bin/env bash
# Makes a Debian with cloud-init: make-cloud-image.sh DIRECTORY
#
# DIRECTORY/cloud.raw is an ext4 file system (label CLOUDROOT, no partition table) of a minimal Debian with systemd, cloud-init and an
# SSH server; DIRECTORY/cloud.vmlinuz and DIRECTORY/cloud.initrd start it. It is a template as it should be: /etc/machine-id is empty, there are
# no SSH host keys, cloud-init has never run. When cloud-init is done, cloud-report.sh says on the serial line what it has made of the machine.
# Needs root, for debootstrap; uses Debian packages only, and keeps them in DIRECTORY/debs for the next time.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin" LC_ALL=C DEBIAN_FRONTEND=noninteractive
here=$(dirname "$(readlink -f "$0")")
out=$(readlink -f "${1:?DIRECTORY}")
suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-bookworm}")
work=$(mktemp -d "$out/cloud.XXXXXX")
root=$work/root
trap 'umount "$root/proc" 2>/dev/null || true; rm -rf "$work"' EXIT

packages=linux-image-cloud-amd64,initramfs-tools,zstd,systemd-sysv,udev,dbus,kmod,iproute2,ifupdown,isc-dhcp-client,netbase,ca-certificates
packages=$packages,cloud-init,python3-cffi-backend,e2fsprogs,openssh-server,sudo

install_packages() {
    mkdir -p "$root/etc/dpkg/dpkg.cfg.d" "$out/debs"
    printf 'path-exclude=/usr/share/%s/*\n' doc man locale info lintian >"$root/etc/dpkg/dpkg.cfg.d/slim"
    debootstrap --variant=minbase --include="$packages" --cache-dir="$out/debs" "$suite" "$root" >"$work/log" 2>&1 || { tail -n 30 "$work/log"; exit 1; }
}

settle() { # what a machine of its own needs, and nothing that names one machine
    echo 'LABEL=CLOUDROOT / ext4 defaults,noatime 0 0' >"$root/etc/fstab"
    echo template >"$root/etc/hostname"
    printf 'auto lo\niface lo inet loopback\nsource /etc/network/interfaces.d/*\n' >"$root/etc/network/interfaces"
    local unit
    for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer; do
        ln -sf /dev/null "$root/etc/systemd/system/$unit"
    done
    install -m755 "$here/cloud-report.sh" "$root/usr/local/sbin/cloud-report"
    cat >"$root/etc/systemd/system/cloud-report.service" <<'UNIT'
[Unit]
Description=say what cloud-init has made of this machine
After=cloud-final.service
[Service]
Type=oneshot
ExecStart=/usr/local/sbin/cloud-report
StandardOutput=tty
TTYPath=/dev/ttyS0
[Install]
WantedBy=cloud-init.target
UNIT
    mkdir -p "$root/etc/systemd/system/cloud-init.target.wants"
    ln -sf ../cloud-report.service "$root/etc/systemd/system/cloud-init.target.wants/cloud-report.service"
    rm -f "$root"/etc/ssh/ssh_host_*
    : >"$root/etc/machine-id"
    rm -f "$root/var/lib/dbus/machine-id"
}

initramfs() { # all modules that the machine will want are loaded here, so the root needs none
    sed -i 's/^MODULES=.*/MODULES=list/; s/^#\? *COMPRESS=.*/COMPRESS=zstd/' "$root/etc/initramfs-tools/initramfs.conf"
    printf '%s\n' virtio_pci virtio_blk virtio_net ext4 vfat nls_cp437 nls_ascii nls_utf8 nls_iso8859-1 isofs af_packet >>"$root/etc/initramfs-tools/modules"
    mount -t proc proc "$root/proc"
    chroot "$root" update-initramfs -u -k all >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
    umount "$root/proc"
    cp "$root"/boot/vmlinuz-* "$work/vmlinuz"
    cp "$root"/boot/initrd.img-* "$work/initrd"
    rm -rf "$root"/boot/* "$root"/lib/modules/* "$root"/{vmlinuz,initrd.img}*
}

install_packages
settle
initramfs
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale,info}/* "$root"/var/log/*.log
used=$(du -sm "$root" | cut -f1)
truncate -s "$((used + used / 8 + 96))M" "$work/raw"
mke2fs -q -F -t ext4 -L CLOUDROOT -U c10ec10e-0000-4000-8000-000000000002 -m 1 -d "$root" "$work/raw"
for file in vmlinuz initrd raw; do mv "$work/$file" "$out/cloud.$file"; done
chmod 644 "$out"/cloud.{vmlinuz,initrd,raw}
echo "cloud.raw: $(stat -c %s "$out/cloud.raw") bytes, $(du -k "$out/cloud.raw" | cut -f1) KiB allocated"
