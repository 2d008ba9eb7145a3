#!/bin/bash
# A week of a computer lab in a minute or two: a template, a pool on two datastores, users, power-offs, a patch that is tried on
# a few, rolled out and rolled back, a datastore in maintenance, and everything checked.
#
#   examples/lab/week.sh [CLONES]           (300 when absent)
#
# The program is $CLONEGATE, `clonegate` when absent. Loopback and a directory of its own; it ends only what it started.
set -euo pipefail
clones=${1:-300}
program=$(command -v "${CLONEGATE:-clonegate}")
work=$(mktemp -d "${TMPDIR:-/tmp}/clonegate-week.XXXXXX")
port=${PORT:-$((20000 + RANDOM % 20000))}
export CLONEGATE_SERVER=http://127.0.0.1:$port
"$program" up --data "$work/data" --clones 0 --listen "127.0.0.1:$port" --nbd "" >"$work/log" 2>&1 &
pid=$!
trap 'kill -INT $pid 2>/dev/null || true; wait $pid 2>/dev/null || true; rm -rf "$work"' EXIT
for _ in $(seq 300); do curl -sf -o /dev/null "$CLONEGATE_SERVER/healthz" && break; sleep 0.1; done

say() { printf '\n== %s\n' "$*"; }
cg() { "$program" "$@"; }
fail() { echo "FAILED: $*" >&2; tail -20 "$work/log" >&2; exit 1; }
size=$((16 << 20)) at=$((8 << 20))  # of a disk, and where its clones are written: zeroes in the image
put() { # put URL-PATH OFFSET TEXT
  curl -sf -X PUT -H "Content-Range: bytes $2-$(($2 + ${#3} - 1))/$4" --data-binary "$3" "$CLONEGATE_SERVER$1" || fail "write to $1"
}
get() { # get URL-PATH OFFSET LENGTH
  curl -sf -r "$2-$(($2 + $3 - 1))" "$CLONEGATE_SERVER$1" | tr -d '\0'
}
identity() { curl -s "$CLONEGATE_SERVER/v1/clones/$1/identity" | sha256sum; }
names() { cg pool show lab | awk '/^lab-/ {print $1}'; }
expect() { [ "$2" = "$3" ] || fail "$1: \"$2\" instead of \"$3\""; }

say "Monday: two datastores, a template, a pool of $clones"
# The first may promise 4 GiB to clones of 16 MiB: 256 of them, which is two bases. The others go to the second.
mkdir -p "$work/fast" "$work/large"
cg datastore add fast "file://$work/fast" --capacity 1GiB
cg datastore add large "file://$work/large" --capacity 64GiB
cg datastore maintenance local on >/dev/null
head -c "$size" /dev/zero >"$work/image.raw"
head -c 4M /dev/urandom | dd of="$work/image.raw" conv=notrunc status=none
printf 'version 1' | dd of="$work/image.raw" conv=notrunc status=none
cg template import win "$work/image.raw" --datastore fast
cg capacity --template win --clones "$clones" --average 1MiB
cg datastore maintenance large on >/dev/null
first=$((clones < 256 ? clones : 256))
cg pool create lab --template win --size "$first" --max "$((clones + 10))" | head -9
cg datastore maintenance large off >/dev/null
[ "$clones" -le 256 ] || cg pool scale lab --size "$clones" | tail -1
cg base list
expect "bases with clones" "$(cg base list | awk '$2 ~ /^win/ && $5 !~ /^0\// {n++} END {print n}')" "$(((clones + 127) / 128))"

say "Tuesday: users come, every clone is written, two have data disks"
for user in alice bob carol; do echo "$user: $(cg pool allocate lab "$user")"; done
for clone in $(names); do put "/v1/clones/$clone/disk" "$at" "work of $clone" "$size"; done
for clone in lab-001 lab-002; do
  cg disk create "data-$clone" 1MiB >/dev/null
  cg disk attach "data-$clone" "$clone" >/dev/null
  put "/v1/disks/data-$clone" 0 "papers of $clone" $((1 << 20))
  identity "$clone" >"$work/identity-$clone"
done

say "Wednesday: some are switched off, and are as new"
for number in 011 012 013; do cg clone power off "lab-$number"; done
expect "a floating clone after power-off" "$(get /v1/clones/lab-011/disk "$at" 7)" ""
cg clone hold lab-014 --reason 'under investigation' >/dev/null
cg clone power off lab-014
expect "a held clone" "$(get /v1/clones/lab-014/disk "$at" 15)" "work of lab-014"
cg clone release lab-014 >/dev/null

say "Thursday: one clone is patched and becomes version 2; three try it"
cg clone create patch --template win >/dev/null
put /v1/clones/patch/disk 0 "version 2" "$size"
cg clone to-template patch win --publish
cg clone update --template win --pool lab --dry-run
cg pool update lab --clones --canary 3 --max-unavailable 32
expect "a clone of the first three" "$(get /v1/clones/lab-001/disk 0 9)" "version 2"
expect "a clone that waits" "$(get /v1/clones/lab-020/disk 0 9)" "version 1"
cg update promote win
expect "every clone" "$(cg clone list | grep -c 'win:2')" "$clones"

say "Friday: version 2 is bad; everybody goes back to what they had"
cg template rollback win >/dev/null
cg update rollback win
for clone in $(names); do
  case $clone in lab-011 | lab-012 | lab-013) want="" ;; *) want="work of $clone" ;; esac
  expect "$clone after the roll-back" "$(get "/v1/clones/$clone/disk" "$at" "$((8 + ${#clone}))")" "$want"
done
for clone in lab-001 lab-002; do
  expect "the data disk of $clone" "$(get "/v1/disks/data-$clone" 0 17)" "papers of $clone"
  expect "the identity of $clone" "$(identity "$clone")" "$(cat "$work/identity-$clone")"
done

say "Saturday: the second datastore is taken into maintenance; releases, a user's own clone"
cg datastore maintenance large on >/dev/null
last=lab-$(printf %03d "$clones")
expect "a clone of a datastore in maintenance" "$(get "/v1/clones/$last/disk" "$at" 15)" "work of $last"
if cg clone promote --help >/dev/null 2>&1; then
  cg clone promote lab-003
  expect "a promoted clone" "$(get /v1/clones/lab-003/disk "$at" 15)" "work of lab-003"
fi
cg pool release lab alice
cg datastore maintenance large off >/dev/null

say "Sunday: what it costs, and that nothing is left over"
cg capacity --template win --clones "$clones"
cg pool list
cg fsck --grace 0s
