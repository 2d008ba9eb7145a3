#!/bin/bash
# Random ranges of one image, over HTTP: a server of ours beside nginx serving the same raw file.
#
#   tests/bench/http.sh FILE OURS_URL OURS_PID [ROUNDS] [SECONDS]
#
# FILE is the raw image that OURS_URL serves, all of it in our memory already. Rounds are interleaved (nginx, ours, nginx, …) so that
# noise hits both; the ratio is made within a round, and the table shows medians over the rounds. CPU is that of the server
# processes, from /proc. Needs wrk and nginx. Loopback only; ends only the nginx that it started.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
file=$(realpath "$1") url=$2 ours_pid=$3 rounds=${4:-3} seconds=${5:-3}
blocks=${BENCH_BLOCKS:-"4096 65536 1048576"} connections=${BENCH_CONNECTIONS:-"1 16 64 256"}
size=$(stat -c %s "$file")
work=$(mktemp -d)
export BENCH_OUT=$work/out
port=$((20000 + RANDOM % 20000))

cat >"$work/nginx.conf" <<CONF
user $(id -un) $(id -gn);
worker_processes auto;
daemon off;
pid $work/nginx.pid;
error_log $work/error.log;
events { worker_connections 4096; }
http {
  default_type application/octet-stream;
  access_log off;
  sendfile on;
  tcp_nodelay on;
  keepalive_requests 1000000000;
  open_file_cache max=10;
  server { listen 127.0.0.1:$port backlog=4096; root $(dirname "$file"); }
}
CONF
nginx -p "$work" -c "$work/nginx.conf" &
nginx_pid=$!
trap 'kill $nginx_pid 2>/dev/null || true; wait $nginx_pid 2>/dev/null || true; rm -rf "$work"' EXIT
nginx_url=http://127.0.0.1:$port/$(basename "$file")
for _ in $(seq 50); do curl -sf -o /dev/null -r 0-0 "$nginx_url" && break; sleep 0.1; done

# The same bytes on both sides, or the comparison is none.
for range in 0-65535 $((size / 2))-$((size / 2 + 65535)) $((size - 65536))-$((size - 1)); do
  [ "$(curl -sf -r $range "$nginx_url" | sha256sum)" = "$(curl -sf -r $range "$url" | sha256sum)" ] || { echo "other bytes at $range" >&2; exit 1; }
done

ticks() { # CPU of processes, in clock ticks
  local sum=0 pid stat
  for pid in "$@"; do stat=$(<"/proc/$pid/stat"); set -- ${stat##*) }; sum=$((sum + ${12} + ${13})); done
  echo $sum
}
nginx_pids() { pgrep -P $nginx_pid; }

measure() { # name url pids… → a line in $work/lines
  local name=$1 target=$2; shift 2
  local before after threads=2
  [ "$count" -ge 2 ] || threads=1
  before=$(ticks "$@")
  wrk -t $threads -c "$count" -d "${seconds}s" --timeout 20s -s "$here/ranges.lua" "$target" -- "$block" "$size" >/dev/null
  after=$(ticks "$@")
  # name block connections round requests/s p50 p99 errors CPU µs/request
  awk -v n="$name" -v b="$block" -v c="$count" -v r="$round" -v t=$((after - before)) -v hz="$(getconf CLK_TCK)" \
    '{ printf "%s %d %d %d %.1f %d %d %d %.2f\n", n, b, c, r, $1/$2, $3, $4, $5, t/hz*1e6/($1>0?$1:1) }' "$BENCH_OUT" | tee -a "$work/lines" >&2
}

for round in $(seq "$rounds"); do
  for block in $blocks; do
    for count in $connections; do
      measure nginx "$nginx_url" $(nginx_pids)
      measure ours "$url" "$ours_pid"
    done
  done
done

echo "| range | connections | nginx, requests/s | ours, requests/s | ratio | p50, µs: nginx / ours | p99, µs: nginx / ours | server CPU per request, µs: nginx / ours | errors |"
echo "|---|---|---|---|---|---|---|---|---|"
awk '
  function median(text,   v, n, i, j, x) {
    n = split(text, v, " ")
    for (i = 2; i <= n; i++) { x = v[i] + 0; for (j = i - 1; j >= 1 && v[j] + 0 > x; j--) v[j+1] = v[j]; v[j+1] = x }
    return n % 2 ? v[(n+1)/2] : (v[n/2] + v[n/2+1]) / 2
  }
  { key = $2 " " $3; if (!(key in seen)) { order[++cells] = key; seen[key] = 1 }
    rate[$1, key] = rate[$1, key] " " $5; p50[$1, key] = p50[$1, key] " " $6; p99[$1, key] = p99[$1, key] " " $7
    errors[key] += $8; cpu[$1, key] = cpu[$1, key] " " $9
    if ($1 == "nginx") base[key, $4] = $5; else ratio[key] = ratio[key] " " $5 / base[key, $4] }
  END {
    for (i = 1; i <= cells; i++) { k = order[i]; split(k, part, " ")
      printf "| %d KiB | %d | %.0f | %.0f | **%.2f** | %d / %d | %d / %d | %.1f / %.1f | %d |\n", part[1]/1024, part[2], median(rate["nginx", k]), median(rate["ours", k]),
        median(ratio[k]), median(p50["nginx", k]), median(p50["ours", k]), median(p99["nginx", k]), median(p99["ours", k]), median(cpu["nginx", k]), median(cpu["ours", k]), errors[k] }
  }' "$work/lines"
