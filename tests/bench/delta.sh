#!/bin/bash
# Measures writes to a clone beside qemu-nbd on a qcow2 overlay: one client for all (`clonegate bench nbd`), one base, rounds in turn.
# Usage: delta.sh [--rounds N] [--secs N] [--mib N] [--work WORDS] [--amplification SECS] [--out FILE]
# Builds nothing: PROGRAM (default target/release/clonegate) is gateway and client. Everything lies below TMPDIR, which should be on the
# disk that is to be measured. ZEROFS=URI adds a server that runs already; RGW=ENDPOINT with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and
# BUCKET adds clones of durability `object` there. Prints Markdown; a ratio is to qemu-nbd, cache=none, of the same round.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
export PROGRAM=${PROGRAM:-$root/target/release/clonegate}
for program in "$PROGRAM" qemu-nbd qemu-img python3; do
    command -v "$program" >/dev/null || { echo "needs $program" >&2; exit 2; }
done
WORK_DIR=$(mktemp -d)
export WORK_DIR
trap 'rm -rf "$WORK_DIR"' EXIT
python3 - "$@" <<'PYTHON'
import argparse, atexit, json, os, random, signal, socket, statistics, subprocess, sys, time, urllib.request

parser = argparse.ArgumentParser()
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--secs", type=float, default=3)
parser.add_argument("--mib", type=int, default=256)
parser.add_argument("--work", default="", help="only the works whose names have these words")
parser.add_argument("--amplification", type=float, default=30, help="seconds of writes; folding is counted until two minutes later; 0: leave it out")
parser.add_argument("--out", default="")
options = parser.parse_args()
folder, program = os.environ["WORK_DIR"], os.environ["PROGRAM"]
base = f"{folder}/base.raw"
with open(base, "wb") as out:
    for _ in range(options.mib):
        out.write(random.randbytes(1 << 20))

def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

HTTP, NBD = free_port(), free_port()
MODES = ["ephemeral", "local", "object"]
CLONES = 32
started = []

def end():
    for child in started:
        if child.poll() is None:
            child.terminate()
            child.wait()
atexit.register(end)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

def start(command, port):
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=open(f"{folder}/log", "a"))
    started.append(child)
    for _ in range(600):
        if child.poll() is not None:
            sys.exit(f"{command[0]} ended: {open(f'{folder}/log').read()[-2000:]}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return child
        except OSError:
            time.sleep(0.1)
    sys.exit(f"{command[0]} does not listen")

def cli(*arguments):
    environment = dict(os.environ, CLONEGATE_SERVER=f"http://127.0.0.1:{HTTP}")
    done = subprocess.run([program, "--output", "json", *arguments], capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        sys.exit(f"clonegate {' '.join(arguments)}: {done.stderr}")
    return json.loads(done.stdout) if done.stdout.strip() else None

def bench(urls, **how):
    arguments = ["bench", "nbd", *urls, "--time", f"{how.pop('secs', options.secs)}s"]
    for key, value in how.items():
        arguments += [f"--{key.replace('_', '-')}"] + ([] if value is True else [str(value)])
    report = cli(*arguments)
    if report["errors"]:
        print(f"{report['errors']} errors of {urls[0]} {how}", file=sys.stderr)
    return report

def gateway(data):
    return start([program, "up", base, "--data", data, "--listen", f"127.0.0.1:{HTTP}", "--nbd", f"127.0.0.1:{NBD}",
                  "--clones", str(CLONES), "--template", "desk"], HTTP)

def overlay(cache, n):
    path, port = f"{folder}/overlay-{cache}-{n}.qcow2", free_port()
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", path], check=True)
    start(["qemu-nbd", "-b", "127.0.0.1", "-t", "-e", "40", "-p", str(port), "-f", "qcow2", f"--cache={cache}", path], port)
    return f"nbd://127.0.0.1:{port}"

gateway(f"{folder}/data")
names = sorted(clone["name"] for clone in cli("clone", "list"))
peers = {"qemu-nbd, none": overlay("none", 0), "qemu-nbd, writeback": overlay("writeback", 0)}
for mode in MODES:
    cli("clone", "create", f"bench-{mode}", "--template", "desk", "--durability", mode)
    peers[mode] = f"nbd://127.0.0.1:{NBD}/bench-{mode}"
if os.environ.get("ZEROFS"):
    peers["ZeroFS"] = os.environ["ZEROFS"]
if os.environ.get("RGW"):
    cli("datastore", "add", "rgw", f"s3://{os.environ['BUCKET']}/bench", "--endpoint", os.environ["RGW"])
    cli("template", "import", "desk-rgw", base, "--format", "raw", "--datastore", "rgw")
    cli("clone", "create", "bench-rgw", "--template", "desk-rgw", "--durability", "object")
    peers["object on RGW"] = f"nbd://127.0.0.1:{NBD}/bench-rgw"

WORK = {
    "4 KiB random write, flush each, depth 1": dict(block="4KiB", write=100, flush_every=1, depth=1),
    "4 KiB random write, flush each, depth 32": dict(block="4KiB", write=100, flush_every=1, depth=32),
    "4 KiB random write, no flush, depth 32": dict(block="4KiB", write=100, depth=32),
    "64 KiB sequential write, depth 8": dict(block="64KiB", write=100, depth=8, sequential=True),
    "4 KiB random, 70 % reads, depth 32": dict(block="4KiB", write=30, depth=32),
}
WORK = {work: how for work, how in WORK.items() if options.work in work}
# Everything is written once before, so that the overlay has its clusters and the clones their maps.
for url in peers.values():
    bench([url], block="64KiB", write=100, depth=8, sequential=True)
rates = {work: {peer: [] for peer in peers} for work in WORK}
for _ in range(options.rounds):
    for work, how in WORK.items():
        for peer, url in peers.items():
            rates[work][peer].append(bench([url], **how)["requests_per_second"])

lines = ["| work | " + " | ".join(peers) + " |", "|---" * (len(peers) + 1) + "|"]
for work, of in rates.items():
    cells = []
    for peer, all in of.items():
        cell = f"{statistics.median(all):.0f}/s"
        if not peer.startswith("qemu"):
            ratio = statistics.median(a / b for a, b in zip(all, of["qemu-nbd, none"]))
            cell += f" (**{ratio:.2f}**)"
        cells.append(cell)
    lines.append(f"| {work} | " + " | ".join(cells) + " |")

# Group commit: one clone, and all of them at once, a flush after each write.
group = {}
for count in (1, CLONES):
    urls = [f"nbd://127.0.0.1:{NBD}/{name}" for name in names[:count]]
    group[count] = statistics.median(
        bench(urls, block="4KiB", write=100, flush_every=1, depth=1, connections=count)["requests_per_second"]
        for _ in range(options.rounds))
lines += ["", f"Group commit, `local`, a flush after each write: one clone {group[1]:.0f} writes/s, {CLONES} clones at once "
          f"{group[CLONES]:.0f} writes/s: {group[CLONES] / group[1]:.1f} times."]

# What the store is asked for by one clone of durability `object`, while it writes and is folded: the log, checkpoints and segments.
def put():
    text = urllib.request.urlopen(f"http://127.0.0.1:{HTTP}/metrics").read().decode()
    total = lambda name: sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines()
                             if line.startswith(name + "{") and 'operation="put' in line)
    return total("clonegate_store_requests_total"), total("clonegate_store_bytes_total")

# All clones are counted together: what was written before comes to rest first, and is folded.
time.sleep(90 if options.amplification else 0)
for name, how in {"a flush each, depth 1": dict(depth=1, flush_every=1), "a flush each, depth 32": dict(depth=32, flush_every=1),
                  "no flush, depth 32": dict(depth=32)}.items() if options.amplification else []:
    before = put()
    done = bench([peers["object"]], block="4KiB", write=100, secs=options.amplification, **how)
    during = put()
    time.sleep(120)
    after = put()
    each = lambda of: (of[1] - before[1]) / max(done['requests'] * 4096, 1)
    lines += ["", f"`object`, 4 KiB, {name}: {done['requests']} writes in {options.amplification:.0f} s, "
              f"{(after[0] - before[0]) / max(done['requests'], 1):.2f} PUTs for each; for each byte written {each(during):.2f} bytes are sent until "
              f"the last write and {each(after):.2f} until two minutes later, folding and checkpoints counted."]
text = "\n".join(lines)
print(text)
if options.out:
    open(options.out, "w").write(text + "\n")
PYTHON
