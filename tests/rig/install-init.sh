#!/bin/busybox sh
# First process of a machine that installs something on its disk while its gateway is killed (tests/tests/nbd_machines.rs), laid over
# the small test Linux. It unpacks COUNT packages, notes each when it is synced, and checks after every start what it had noted.
# It says on the serial line: INSTALL-START boots=N, INSTALL-STEP N, INSTALL-OK …, or INSTALL-FAIL …
BB=/bin/busybox
$BB mkdir -p /proc /sys /dev /run /mnt /usr/bin /usr/sbin
$BB --install -s
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
exec >/dev/ttyS0 2>&1 </dev/ttyS0
COUNT=30
fail() { echo; echo "INSTALL-FAIL $*"; sleep 1; poweroff -f; }

for module in virtio_pci virtio_blk; do modprobe -q $module; done
for try in 1 2 3 4 5 6 7 8 9 10; do
    disk=$(findfs LABEL=CLONEROOT 2>/dev/null) && break
    sleep 1
    mdev -s 2>/dev/null
done
mount -t ext4 -o errors=panic "$disk" /mnt || fail "cannot mount $disk"
mkdir -p /mnt/state/packages
cd /mnt/state || fail "no state"
boots=$(($(cat boots 2>/dev/null || echo 0) + 1))
echo $boots >boots
noted=$(cat noted 2>/dev/null || echo 0)
echo "INSTALL-START boots=$boots noted=$noted"
checked=0
while [ $checked -lt "$noted" ]; do
    checked=$((checked + 1))
    (cd packages/$checked && sha256sum -c sums >/dev/null) || fail "package $checked was synced and is damaged"
done
step=$noted
while [ $step -lt $COUNT ]; do
    step=$((step + 1))
    rm -rf packages/$step
    mkdir packages/$step
    # Some 0.5 MiB: one file of a piece of the payload, and many small ones, as a package has.
    dd if=/mnt/payload/random of=packages/$step/data bs=64k skip=$((step * 4)) count=4 2>/dev/null || fail "cannot write $step"
    (cd packages/$step && split -l 1600 -a 3 /mnt/payload/text part. 2>/dev/null; rm -f part.?[b-z]?; sha256sum data part.* >sums)
    sync
    echo $step >noted.new && mv noted.new noted
    sync
    echo "INSTALL-STEP $step"
done
cd /
umount /mnt || fail "cannot unmount"
sync
echo "INSTALL-OK boots=$boots packages=$step"
poweroff -f
