#!/bin/busybox sh
# What udhcpc calls in the small test Linux: sets address and default route.
case $1 in
bound | renew)
    ip addr flush dev "$interface"
    ip addr add "$ip/${mask:-24}" dev "$interface"
    for gateway in $router; do
        ip route add default via "$gateway" dev "$interface"
        break
    done
    ;;
esac
