#!/bin/sh
# Runs a virtual machine on a clone over NBD: qemu.sh HOST PORT CLONE [MORE QEMU OPTIONS]
#
# reconnect-delay   when the gateway goes away requests wait so many seconds for it, then fail. In-flight requests are sent
#                   again after the reconnect. Give it longer than a restart of the gateway takes.
# open-timeout      how long to try at the beginning, so that gateway and machine may start in any order.
# discard, detect-zeroes   freed and zeroed blocks leave the delta.
# werror, rerror    an I/O error stops the machine instead of reaching the file system; "cont" in the monitor tries again.
set -eu
host=$1 port=$2 clone=$3
shift 3
exec qemu-system-x86_64 -m 1024 \
    -blockdev "driver=nbd,node-name=disk0,server.type=inet,server.host=$host,server.port=$port,export=$clone,\
reconnect-delay=300,open-timeout=60,discard=unmap,detect-zeroes=unmap" \
    -device virtio-blk-pci,drive=disk0,write-cache=on,werror=stop,rerror=stop \
    "$@"
