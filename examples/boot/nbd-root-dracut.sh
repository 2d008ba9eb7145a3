#!/bin/sh
# Makes a system with dracut (Fedora, RHEL, openSUSE; Debian with dracut-core) start with a clone as its root, by NBD. Run as root in the
# template (or by chroot) before it is imported:
#   nbd-root-dracut.sh [INITRAMFS [KERNEL-VERSION]]
# Packages: dracut and dracut-network, and nbd (Debian: dracut-core, dracut-network, nbd-client, procps, isc-dhcp-client). The kernel is then told:
#   ip=dhcp rd.neednet=1 netroot=nbd:HOST:CLONE root=LABEL=NAME rw
# dracut's nbd module asks the standard port, 10809: a gateway that listens elsewhere (`listen.nbd`) is not found.
set -eu
version=${2:-$(basename "$(find /lib/modules -mindepth 1 -maxdepth 1 | sort -V | tail -n 1)")}
image=${1:-/boot/initramfs-$version.img}

mkdir -p /etc/dracut.conf.d
cat >/etc/dracut.conf.d/nbd-root.conf <<'CONFIGURATION'
# Not only for the machine that it is made on.
hostonly="no"
add_dracutmodules+=" nbd "
add_drivers+=" nbd virtio_pci virtio_net "
CONFIGURATION
# dracut 059 attaches network roots from its own network scripts or from NetworkManager, but not from systemd-networkd, which it prefers when
# `pgrep` or `dhclient` is missing: then nothing is attached and the boot waits for ever.
if [ -d /usr/lib/dracut/modules.d/35network-legacy ]; then
    printf 'add_dracutmodules+=" network-legacy "\nomit_dracutmodules+=" systemd-networkd "\n' >>/etc/dracut.conf.d/nbd-root.conf
fi

# The card that carries the root keeps its address: see nbd-root-debian.sh.
mkdir -p /etc/systemd/network
printf '[Match]\nName=en* eth*\n[Network]\nDHCP=yes\nKeepConfiguration=yes\n' >/etc/systemd/network/00-nbd-root.network
if [ -d /etc/NetworkManager/conf.d ]; then
    printf '[keyfile]\nunmanaged-devices=interface-name:en*;interface-name:eth*\n' >/etc/NetworkManager/conf.d/nbd-root.conf
fi

dracut --force --no-hostonly "$image" "$version"
