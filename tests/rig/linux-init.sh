#!/bin/busybox sh
# First process of the small test Linux (make-linux-image.sh). It is told what to do by the kernel command line:
#   clonegate.root=LABEL=NAME|DEVICE  mount this, check its payload; if it is writable count the boot in /state/boots
#   clonegate.nbd=HOST:PORT/EXPORT    attach this first, as /dev/nbd0 (or by SMBIOS serial number, with the same text)
# and says on the serial line: LINUX-UP, then LINUX-OK … or LINUX-FAIL …
BB=/bin/busybox
$BB mkdir -p /proc /sys /dev /run /mnt /usr/bin /usr/sbin
$BB --install -s
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
exec >/dev/ttyS0 2>&1 </dev/ttyS0

say() { echo; echo "$*"; }
fail() { say "LINUX-FAIL $*"; sync; poweroff -f; }
option() { # NAME: the value of the last NAME=… given
    for word in $(cat /proc/cmdline) $(cat /sys/class/dmi/id/product_serial 2>/dev/null); do
        case $word in "$1"=*) value=${word#*=} ;; esac
    done
    echo "$value"
}

say "LINUX-UP $(uname -r) firmware=$([ -d /sys/firmware/efi ] && echo uefi || echo bios)"
for module in virtio_pci virtio_blk virtio_scsi ahci ata_piix sd_mod nfit nd_pmem; do modprobe -q $module; done

network() {
    modprobe -q virtio_net
    for try in 1 2 3 4 5 6 7 8 9 10; do
        for path in /sys/class/net/*; do
            card=${path##*/}
            [ "$card" = lo ] || break 2
        done
        sleep 1
    done
    ip link set lo up
    ip link set "$card" up
    udhcpc -i "$card" -n -q -t 20 -T 1 -s /etc/udhcpc.sh >/dev/null || fail "no address for $card"
}

export_name=$(option clonegate.nbd)
if [ -n "$export_name" ]; then
    network
    modprobe nbd nbds_max=1 max_part=8
    server=${export_name%%/*}
    nbd-client -N "${export_name#*/}" "${server%:*}" "${server##*:}" /dev/nbd0 -persist || fail "no NBD export $export_name"
    sleep 1
    [ -e /dev/nbd0p1 ] || blockdev --rereadpt /dev/nbd0
fi

root=$(option clonegate.root)
[ "$root" != none ] || { say "LINUX-OK root=none"; poweroff -f; }
for try in $(seq 1 20); do
    case $root in
    LABEL=*) device=$(findfs "$root" 2>/dev/null) ;;
    *) [ -b "$root" ] && device=$root ;;
    esac
    [ -z "$device" ] || break
    sleep 1
    mdev -s 2>/dev/null
done
[ -n "$device" ] || { say "LINUX-NODISK seen: $(ls /sys/block | tr '\n' ' ')"; poweroff -f; }

mode=rw
[ "$(cat /sys/class/block/${device##*/}/ro)" = 0 ] || mode=ro,noload
mount -t ext4 -o $mode "$device" /mnt || fail "cannot mount $device"
(cd /mnt/payload && sha256sum -c sums >/dev/null) || fail "the payload on $device is damaged"
boots=0
if [ $mode = rw ]; then
    boots=$(($(cat /mnt/state/boots 2>/dev/null || echo 0) + 1))
    echo $boots >/mnt/state/boots
    dd if=/dev/urandom of=/mnt/state/written bs=64k count=16 2>/dev/null
    sum=$(sha256sum </mnt/state/written)
    umount /mnt
    echo 3 >/proc/sys/vm/drop_caches
    mount -t ext4 "$device" /mnt
    [ "$sum" = "$(sha256sum </mnt/state/written)" ] || fail "what was written to $device reads differently"
fi
umount /mnt
sync
[ -z "$export_name" ] || nbd-client -d /dev/nbd0 >/dev/null
say "LINUX-OK root=$device mode=${mode%%,*} boots=$boots"
poweroff -f
