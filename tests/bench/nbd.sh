#!/bin/bash
# Measures NBD beside other servers: the same client (fio's nbd engine), the same data, rounds in turn so that noise hits all alike.
# Usage: nbd.sh [--rounds N] [--secs N] [--mib N] [--work a,b] [--only a,b] [--extra NAME=URI@PID]... [--out FILE]
# Builds nothing: PROGRAM (default target/release/clonegate) is the gateway, which serves clones of an image that is all in the
# iCache from a directory. Prints a Markdown table of medians; ratios are medians of ratios in a round.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
export PROGRAM=${PROGRAM:-$root/target/release/clonegate}
for program in "$PROGRAM" fio qemu-nbd qemu-img nbdkit python3; do
    command -v "$program" >/dev/null || { echo "needs $program" >&2; exit 2; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export WORK_DIR=$work
exec 3>&1
python3 - "$@" <<'PYTHON'
import argparse, json, os, random, socket, statistics, subprocess, sys, time

parser = argparse.ArgumentParser()
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--secs", type=int, default=3)
parser.add_argument("--mib", type=int, default=512)
parser.add_argument("--work", default="")
parser.add_argument("--only", default="")
parser.add_argument("--extra", action="append", default=[])
parser.add_argument("--out", default="")
options = parser.parse_args()
folder = os.environ["WORK_DIR"]
gateway = os.environ["PROGRAM"]
base = f"{folder}/base.raw"
with open(base, "wb") as out:
    for _ in range(options.mib):
        out.write(random.randbytes(1 << 20))

CLONES = 32

def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])

def overlay(name="overlay"):
    path = f"{folder}/{name}.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", path], check=True)
    return path

def copy(name):
    subprocess.run(["cp", "--sparse=never", base, f"{folder}/{name}"], check=True)
    return f"{folder}/{name}"

kit = ["nbdkit", "-f", "-i", "127.0.0.1", "-t", "16", "-p"]
qemu = ["qemu-nbd", "-b", "127.0.0.1", "-t", "-e", "8", "-p"]
up = [gateway, "up", base, "--data", f"{folder}/data", "--listen", "127.0.0.1:" + free_port(), "--clones", str(CLONES), "--template", "desktop"]
PEERS = {
    "qemu-nbd qcow2": lambda port: qemu + [port, "-f", "qcow2", overlay()],
    "qemu-nbd raw": lambda port: qemu + [port, "-f", "raw", copy("raw.raw")],
    "nbdkit file": lambda port: kit + [port, "file", copy("file.raw")],
    "nbdkit null": lambda port: kit + [port, "null", f"{options.mib}M"],
    "clonegate": lambda port: up + ["--nbd", f"127.0.0.1:{port}"],
}
# Each of 32 clones has a client of its own; of qemu-nbd that takes 32 processes.
MANY = f"4 KiB random read, depth 1, {CLONES} clones at once"
WORKS = {
    "4 KiB random read, depth 1": ("randread", "4k", 1),
    "4 KiB random read, depth 32": ("randread", "4k", 32),
    "64 KiB random read, depth 8": ("randread", "64k", 8),
    "1 MiB sequential read, depth 4": ("read", "1m", 4),
    MANY: ("randread", "4k", 1),
    "4 KiB random write, depth 32": ("randwrite", "4k", 32),
}

def cpu_seconds(pids):
    total = 0
    for pid in pids:
        try:
            fields = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        except OSError:
            pass
    return total / os.sysconf("SC_CLK_TCK")

def fio(uris, work):
    mode, block, depth = WORKS[work]
    run = ["fio", "--thread", "--ioengine=nbd", f"--rw={mode}", f"--bs={block}", f"--iodepth={depth}",
           f"--size={options.mib}m", "--time_based", f"--runtime={options.secs}", "--norandommap", "--randrepeat=1",
           "--group_reporting", "--output-format=json"]
    for number, uri in enumerate(uris):
        run += [f"--name=job{number}", f"--uri={uri}"]
    text = subprocess.run(run, capture_output=True, text=True, timeout=options.secs * 10 + 60).stdout
    job = json.loads(text[text.index("{"):])["jobs"][0]
    side = job["write" if "write" in mode else "read"]
    assert job["error"] == 0, job["error"]
    return side["iops"], side["total_ios"], side["clat_ns"]["percentile"]["50.000000"] / 1e3, side["clat_ns"]["percentile"]["99.000000"] / 1e3

running, results = [], {}
try:
    for name, command in PEERS.items():
        if options.only and name not in options.only.split(","):
            continue
        port = free_port()
        log = open(f"{folder}/{len(running)}.log", "w")
        process = subprocess.Popen(command(port), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        uri = f"nbd://127.0.0.1:{port}/" + ("desktop-001" if name == "clonegate" else "")
        running.append((name, uri, [process.pid], [process]))
    crowds = {}
    if not options.work or any(part in MANY for part in options.work.split(",")):
        for name, uri, pids, processes in running:
            if name == "clonegate":
                crowds[name] = [f"{uri[:-3]}{number:03}" for number in range(1, CLONES + 1)], pids
            elif name == "qemu-nbd qcow2":
                crowds[name] = [uri], pids[:]
                for number in range(1, CLONES):
                    port = free_port()
                    processes.append(subprocess.Popen(qemu + [port, "-f", "qcow2", overlay(f"overlay{number}")]))
                    crowds[name][0].append(f"nbd://127.0.0.1:{port}/")
                    crowds[name][1].append(processes[-1].pid)
    for extra in options.extra:
        name, _, rest = extra.partition("=")
        uri, _, pids = rest.rpartition("@")
        running.append((name, uri, pids.split(","), []))
    for name, uri, _, _ in running:
        for attempt in range(300):
            if subprocess.run(["nbdinfo", "--size", uri], capture_output=True).returncode == 0:
                break
            time.sleep(0.1)
        fill = ["fio", "--name=w", "--thread", "--ioengine=nbd", f"--uri={uri}", "--rw=read", "--bs=256k", "--iodepth=4", f"--size={options.mib}m"]
        subprocess.run(fill, capture_output=True, timeout=300, check=True)
    works = [work for work in WORKS if not options.work or any(part in work for part in options.work.split(","))]
    # All rounds of one work, then the next; writes come last, so that reads are of what was never written.
    for work in works:
        for number in range(options.rounds):
            for name, uri, pids, _ in running:
                uris = [uri]
                if work == MANY:
                    if name not in crowds:
                        continue
                    uris, pids = crowds[name]
                before = cpu_seconds(pids)
                iops, count, p50, p99 = fio(uris, work)
                cost = (cpu_seconds(pids) - before) * 1e6 / max(1, count)
                row = dict(round=number, work=work, peer=name, iops=iops, p50_us=p50, p99_us=p99, cpu_us=cost, load=os.getloadavg()[0])
                results.setdefault(work, {}).setdefault(name, []).append(row)
                if options.out:
                    with open(options.out, "a") as out:
                        out.write(json.dumps(row) + "\n")
                print(f"{number} {work}: {name}: {iops:.0f}/s, {cost:.1f} us CPU", file=sys.stderr, flush=True)
finally:
    processes = [process for *_, processes in running for process in processes]
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait(60)

print("| work | server | requests/s | p50 µs | p99 µs | server CPU µs a request | × qemu-nbd qcow2 |")
print("|---|---|---|---|---|---|---|")
middle = lambda rows, key: statistics.median(row[key] for row in rows)
for work, peers in results.items():
    reference = peers.get("qemu-nbd qcow2")
    for name, rows in peers.items():
        ratio = statistics.median(a["iops"] / b["iops"] for a, b in zip(rows, reference)) if reference else float("nan")
        print(f"| {work} | {name} | {middle(rows, 'iops'):.0f} | {middle(rows, 'p50_us'):.0f} | {middle(rows, 'p99_us'):.0f} | {middle(rows, 'cpu_us'):.1f} | {ratio:.2f} |")
PYTHON
