#!/bin/sh
# The last service of the Debian test image (make-debian-image.sh): checks what it was made with, writes to its root, says so, powers off.
root=$(findmnt -no SOURCE /)
mode=$(findmnt -no OPTIONS / | cut -d, -f1)
payload=damaged
(cd /payload && sha256sum -c sums >/dev/null 2>&1) && payload=right
# What the boot before this one wrote must read as it was.
if [ -e /state/written ] && ! (cd /state && sha256sum -c written.sum >/dev/null 2>&1); then payload=lost; fi
boots=0
if [ "$mode" = rw ]; then
    boots=$(($(cat /state/boots 2>/dev/null || echo 0) + 1))
    echo $boots >/state/boots
    dd if=/dev/urandom of=/state/written bs=64k count=32 2>/dev/null
    (cd /state && sha256sum written >written.sum)
    sync
fi
echo "DEBIAN-OK root=$root mode=$mode payload=$payload boots=$boots up=$(cut -d' ' -f1 /proc/uptime)"
systemctl poweroff --no-block
