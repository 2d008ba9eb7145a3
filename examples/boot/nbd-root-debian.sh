#!/bin/sh
# Makes a Debian or Ubuntu system start with a clone as its root, by NBD. Run as root in the template (or by chroot) before it is imported:
#   nbd-root-debian.sh [DRIVER…]       # drivers of the machines' network cards, if they are not among those below
# The kernel is then told: ip=dhcp nbdroot=HOST:PORT/CLONE root=/dev/nbd0pN rw
set -eu

# Its hook for initramfs-tools attaches the clone.
if ! [ -x /sbin/nbd-client ] && ! [ -x /usr/sbin/nbd-client ]; then
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends nbd-client
fi
# nbd-root-keep, which lies beside this file, attaches it again when the gateway is started anew: from the initramfs on.
install -m755 "$(dirname "$0")/nbd-root-keep" /usr/local/sbin/nbd-root-keep
cat >/etc/initramfs-tools/hooks/nbd-root-keep <<'HOOK'
#!/bin/sh
[ "$1" != prereqs ] || exit 0
. /usr/share/initramfs-tools/hook-functions
copy_exec /usr/bin/perl /usr/bin
copy_file script /usr/local/sbin/nbd-root-keep /usr/sbin/nbd-root-keep
HOOK
cat >/etc/initramfs-tools/scripts/local-top/nbd-root-keep <<'SCRIPT'
#!/bin/sh
[ "$1" != prereqs ] || { echo nbd; exit 0; }
for word in $(cat /proc/cmdline); do
    case $word in
    nbdroot=*/*) where=${word#nbdroot=} ;;
    root=/dev/nbd*) number=${word#root=/dev/nbd} number=${number%%p*} ;;
    esac
done
[ -z "$where" ] || /usr/sbin/nbd-root-keep "$where" "${number:-0}" </dev/null >/dev/kmsg 2>&1
SCRIPT
chmod 755 /etc/initramfs-tools/hooks/nbd-root-keep /etc/initramfs-tools/scripts/local-top/nbd-root-keep

# The service of the same package attaches what /etc/nbdtab names, and detaches it at shutdown: the root must outlive that.
ln -sf /dev/null /etc/systemd/system/nbd-client.service

# Every card's driver goes into the initramfs with MODULES=most (the default); these, whatever is said there.
for module in nbd virtio_pci virtio_net "$@"; do
    grep -qx "$module" /etc/initramfs-tools/modules || echo "$module" >>/etc/initramfs-tools/modules
done

# The card that carries the root keeps the address of the initramfs: whoever configures it anew, or takes it down at
# shutdown, takes the disk away with it.
if [ -e /etc/network/interfaces ]; then
    printf 'auto lo\niface lo inet loopback\n' >/etc/network/interfaces
fi
mkdir -p /etc/systemd/network
cat >/etc/systemd/network/00-nbd-root.network <<'NETWORK'
# The root is on the network: addresses are kept, whatever happens to the lease.
[Match]
Name=en* eth*
[Network]
DHCP=yes
KeepConfiguration=yes
NETWORK
if [ -d /etc/NetworkManager/conf.d ]; then
    printf '[keyfile]\nunmanaged-devices=interface-name:en*;interface-name:eth*\n' >/etc/NetworkManager/conf.d/nbd-root.conf
fi
if [ -d /etc/cloud/cloud.cfg.d ]; then
    echo 'network: {config: disabled}' >/etc/cloud/cloud.cfg.d/99-nbd-root.cfg
fi

update-initramfs -u -k all
