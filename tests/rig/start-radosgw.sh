#!/bin/bash
# Starts a Ceph of one monitor, one OSD in memory and one RADOS gateway on loopback, with ports of its own.
#
#   start-radosgw.sh DIR      runs it below DIR, prints "ready URL" when S3 answers, and stays until its standard input
#                             ends or it gets a signal; then ends what it started, by process id.
#
# Debian packages: radosgw ceph-mon ceph-osd ceph-common. S3 key "clonegate", secret "clonegate-secret".
# CLONEGATE_CEPH_MEMORY: bytes of the OSD's memory store; a full OSD stops answering.
set -euo pipefail
dir=$(realpath "${1:?usage: start-radosgw.sh DIR}")
memory=${CLONEGATE_CEPH_MEMORY:-4294967296}
mkdir -p "$dir"/{mon,osd,rgw,run,log}

pids=()
finish() {
  trap - EXIT INT TERM HUP
  for ((at = ${#pids[@]} - 1; at >= 0; at--)); do kill "${pids[at]}" 2>/dev/null || true; done
  for _ in {1..50}; do
    alive=0
    for pid in "${pids[@]}"; do kill -0 "$pid" 2>/dev/null && alive=1; done
    [ $alive = 0 ] && break
    sleep 0.1
  done
  for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
}
trap finish EXIT
trap 'exit 1' INT TERM HUP

read -r mon1 mon2 web fsid < <(python3 - <<'P'
import socket, uuid
held = [socket.socket() for _ in range(3)]
for s in held:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in held), uuid.uuid4())
P
)

cat >"$dir/ceph.conf" <<C
[global]
fsid = $fsid
mon host = [v2:127.0.0.1:$mon2/0,v1:127.0.0.1:$mon1/0]
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
keyring = $dir/keyring
run dir = $dir/run
admin socket = $dir/run/\$name.sock
pid file = $dir/run/\$name.pid
log file = $dir/log/\$name.log
crash dir = $dir/run
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
mon data avail crit = 1
mon data avail warn = 1
[mon]
mon data = $dir/mon
keyring = $dir/mon/keyring
[osd]
osd data = $dir/osd
keyring = $dir/osd/keyring
osd objectstore = memstore
memstore device bytes = $memory
[client]
rgw data = $dir/rgw
rgw frontends = beast endpoint=127.0.0.1:$web
rgw dns name = localhost
C

ceph=(-c "$dir/ceph.conf")
run() { local name=$1; shift; "$@" >"$dir/log/$name.out" 2>&1 </dev/null & pids+=($!); }
wait_for() { # what, seconds, command
  local what=$1 until=$((SECONDS + $2)); shift 2
  until "$@" >/dev/null 2>&1; do
    if ((SECONDS >= until)); then echo "failed: no $what after $until s; see $dir/log" >&2; tail -n 5 "$dir"/log/*.out >&2; exit 1; fi
    sleep 0.1
  done
}
as_root=(); [ "$(id -u)" = 0 ] && as_root=(--setuser root --setgroup root)

ceph-authtool --create-keyring "$dir/keyring" --gen-key -n client.admin \
  --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *' >/dev/null
ceph-authtool "$dir/keyring" --gen-key -n mon. --cap mon 'allow *' >/dev/null
monmaptool --create --fsid "$fsid" --addv a "[v2:127.0.0.1:$mon2,v1:127.0.0.1:$mon1]" "$dir/monmap" >/dev/null
ceph-mon "${ceph[@]}" --mkfs -i a --monmap "$dir/monmap" --keyring "$dir/keyring" >"$dir/log/mkfs.out" 2>&1
run mon ceph-mon "${ceph[@]}" -i a -f "${as_root[@]}"
wait_for monitor 60 ceph "${ceph[@]}" --connect-timeout 2 -s

osd_uuid=$(python3 -c 'import uuid; print(uuid.uuid4())')
ceph "${ceph[@]}" osd new "$osd_uuid" >/dev/null
ceph "${ceph[@]}" auth get-or-create osd.0 mon 'allow profile osd' osd 'allow *' -o "$dir/osd/keyring" >/dev/null
ceph-osd "${ceph[@]}" -i 0 --mkfs --osd-uuid "$osd_uuid" >"$dir/log/osd-mkfs.out" 2>&1
run osd ceph-osd "${ceph[@]}" -i 0 -f "${as_root[@]}"
osd_up() { ceph "${ceph[@]}" --connect-timeout 2 osd stat | grep -q '1 up'; }
wait_for OSD 60 osd_up

radosgw-admin "${ceph[@]}" user create --uid=clonegate --display-name=clonegate \
  --access-key=clonegate --secret=clonegate-secret >"$dir/log/user.out" 2>&1
run rgw radosgw "${ceph[@]}" -n client.admin --keyring "$dir/keyring" -f "${as_root[@]}"
answers() { (exec 3<>"/dev/tcp/127.0.0.1/$web") 2>/dev/null; }
wait_for gateway 60 answers

echo "ready http://127.0.0.1:$web"
cat >/dev/null || true
