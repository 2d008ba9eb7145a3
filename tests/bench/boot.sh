#!/bin/bash
# Boots machines from a clone and, in turn, from nginx with the same image: firmware to marker in seconds, requests, bytes.
#
#   tests/bench/boot.sh [--rounds N] [--only REGEX] [--cold [both|nginx]] [--storm] [--out FILE]
#
# Needs a built gateway (GATEWAY, default target/release/clonegate), QEMU (TCG), nginx and the boot loaders of tests/rig/packages.txt. The small Linux
# of the tests (linux.raw in IMAGES, default target/test-images) is made when it is not there, by tests/rig/make-linux-image.sh. Rounds are in turn (nginx, ours,
# nginx, …) so that noise hits both; ratios are made within a round, and the table shows medians. Warm: each server has served one
# boot before. --cold: before each boot nginx's file leaves the page cache and the gateway is started anew with an empty iCache and
# its store out of the page cache; `--cold nginx` leaves ours warm. --storm: one machine, then four at once, each on a clone of its own and from a cold
# iCache, with what the store is asked: four should ask as much as one. A boot before them records the boot set, so that both have it.
# Loopback only; ends only what it started.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
export PATH=$PATH:/usr/sbin:/sbin
export GATEWAY=${GATEWAY:-$root/target/release/clonegate} IMAGES=${IMAGES:-$root/target/test-images}
for program in qemu-system-x86_64 nginx python3 mcopy mkfs.vfat grub-mkimage curl; do
    command -v "$program" >/dev/null || { echo "needs $program" >&2; exit 2; }
done
[ -x "$GATEWAY" ] || { echo "needs $GATEWAY: cargo build --release -p clonegate" >&2; exit 2; }
if ! [ -e "$IMAGES/linux.raw" ]; then
    mkdir -p "$IMAGES"
    "$root/tests/rig/make-linux-image.sh" "$IMAGES" >&2
fi
WORK=$(mktemp -d)
export WORK
trap 'rm -rf "$WORK"' EXIT
python3 - "$@" <<'PYTHON'
import argparse, os, re, shutil, signal, socket, statistics, struct, subprocess, sys, threading, time, urllib.request

parser = argparse.ArgumentParser()
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--only", default=".")
parser.add_argument("--cold", nargs="?", const="both", default="", choices=["both", "nginx"])
parser.add_argument("--storm", action="store_true")
parser.add_argument("--out", default="")
options = parser.parse_args()
work, images, program = (os.environ[name] for name in ("WORK", "IMAGES", "GATEWAY"))
HOST = "10.0.2.2"
OVMF = "/usr/share/OVMF/OVMF_{}_4M.fd"
PATIENCE = 300
environment = {name: value for name, value in os.environ.items() if not name.startswith("CLONEGATE_")}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


def drop_pages(top):
    for folder, _, files in os.walk(top):
        for name in files:
            with open(os.path.join(folder, name), "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Gateway:
    name = "clonegate"

    def __init__(self):
        self.http, self.nbd = free_port(), free_port()
        self.start()
        self.cli("template", "import", "linux", f"{images}/linux.raw", "--format", "raw")
        self.cli("clone", "create", "pc-{n}", "--template", "linux", "--count", "5")
        self.disk, self.image, self.program = "/v1/clones/pc-1/disk", "/v1/clones/pc-1/disk.img", "/efi/grub.efi"
        self.files = "/v1/clones/pc-1/files/-/boot"

    def start(self):
        command = [program, "up", "--data", f"{work}/data", "--clones", "0", "--template", "demo"]
        command += ["--listen", f"127.0.0.1:{self.http}", "--nbd", f"127.0.0.1:{self.nbd}"]
        os.makedirs(f"{work}/efi", exist_ok=True)
        own = dict(environment, CLONEGATE_BOOT_EFI=f"{work}/efi")
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=own)
        for _ in range(600):
            try:
                return urllib.request.urlopen(f"http://127.0.0.1:{self.http}/healthz").read()
            except OSError:
                time.sleep(0.1)
        sys.exit("the gateway does not start")

    def cli(self, *command):
        return run(program, *command, "--server", f"http://127.0.0.1:{self.http}")

    def stop(self):
        self.process.terminate()
        self.process.wait()

    def cold(self):
        self.stop()
        drop_pages(f"{work}/data")
        self.start()

    def samples(self):
        text = urllib.request.urlopen(f"http://127.0.0.1:{self.http}/metrics").read().decode()
        found = {}
        for line in text.splitlines():
            if not line.startswith("#") and " " in line:
                name, value = line.rsplit(" ", 1)
                found[name] = float(value)
        return found

    def counts(self):
        samples = self.samples()
        total = lambda metric: sum(v for k, v in samples.items() if k.startswith(metric))
        return total("clonegate_http_requests_total"), total("clonegate_http_sent_bytes_total")


class Nginx:
    name = "nginx"

    def __init__(self):
        self.http = free_port()
        self.disk, self.files = "/linux.raw", "/files"
        self.image, self.program = "/linux.img", "/files/grub.efi"
        os.makedirs(f"{work}/www/files")
        shutil.copy(f"{images}/linux.raw", f"{work}/www/linux.raw")
        os.link(f"{work}/www/linux.raw", f"{work}/www/linux.img")
        for name in ("vmlinuz", "initrd"):
            shutil.copy(f"{images}/linux.{name}", f"{work}/www/files/{name}")
        user = run("id", "-un").strip()
        with open(f"{work}/nginx.conf", "w") as out:
            out.write(
                f"user {user}; worker_processes auto; daemon off; pid {work}/nginx.pid; error_log {work}/error.log;\n"
                "events { worker_connections 1024; }\n"
                "http { types { application/efi efi; } default_type application/octet-stream; sendfile on; tcp_nodelay on; keepalive_requests 1000000;\n"
                f"log_format short '$body_bytes_sent'; access_log {work}/access.log short;\n"
                f"server {{ listen 127.0.0.1:{self.http}; root {work}/www; }} }}\n"
            )
        self.process = subprocess.Popen(["nginx", "-p", work, "-c", f"{work}/nginx.conf"])
        for _ in range(600):
            try:
                return urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{self.http}/linux.raw", method="HEAD")).close()
            except OSError:
                time.sleep(0.1)
        sys.exit("nginx does not start")

    def stop(self):
        self.process.terminate()
        self.process.wait()

    def cold(self):
        drop_pages(f"{work}/www")

    def counts(self):
        with open(f"{work}/access.log") as log:
            sizes = [int(line) for line in log]
        return len(sizes), sum(sizes)


def machine(arguments, marker):
    """Seconds from power-on until the serial line shows the marker."""
    command = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-m", "768", "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"]
    begin = time.monotonic()
    process = subprocess.Popen(command + arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    timer = threading.Timer(PATIENCE, process.kill)
    timer.start()
    seen = b""
    try:
        while True:
            data = os.read(process.stdout.fileno(), 65536)
            if not data:
                return None, seen
            seen += data.replace(b"\r", b"").replace(b"\0", b"")
            if marker.encode() in seen:
                return time.monotonic() - begin, seen
    finally:
        timer.cancel()
        process.kill()
        process.wait()


number = 0


def folder():
    global number
    number += 1
    path = f"{work}/vm{number}"
    os.mkdir(path)
    return path


def uefi(path):
    shutil.copy(OVMF.format("VARS"), f"{path}/vars.fd")
    return ["-M", "q35", "-device", "virtio-rng-pci", "-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={OVMF.format('CODE')}",
            "-drive", f"if=pflash,format=raw,unit=1,file={path}/vars.fd"]


def esp(path, efi):
    run("truncate", "-s", "8M", f"{path}/esp.img")
    run("mkfs.vfat", "-F", "16", "-s", "2", f"{path}/esp.img")
    run("mmd", "-i", f"{path}/esp.img", "::/EFI", "::/EFI/BOOT")
    run("mcopy", "-i", f"{path}/esp.img", efi, "::/EFI/BOOT/BOOTX64.EFI")
    return ["-drive", f"file={path}/esp.img,format=raw,if=none,id=esp,readonly=on", "-device", "virtio-blk-pci,drive=esp,bootindex=0"]


ARGUMENTS = "console=ttyS0,115200 quiet panic=5 no_timer_check clonegate.root=none"


def ipxe(script, firmware):
    path = folder()
    with open(f"{path}/boot.ipxe", "w") as out:
        out.write(f"#!ipxe\n{script}\n")
    network = ["-netdev", f"user,id=n0,tftp={path},bootfile=boot.ipxe"]
    if firmware == "bios":
        return ["-M", "pc,graphics=off", *network, "-device", "virtio-net-pci,netdev=n0,bootindex=1"]
    return [*uefi(path), *esp(path, "/boot/ipxe.efi"), *network, "-device", "virtio-net-pci,netdev=n0,romfile="]


def san(server, firmware, disk=None):
    return ipxe(f"sanboot --drive 0x80 http://{HOST}:{server.http}{disk or server.disk}", firmware), "LINUX-NODISK"


def kernel(server, firmware):
    url = f"http://{HOST}:{server.http}{server.files}"
    return ipxe(f"kernel {url}/vmlinuz initrd=initrd {ARGUMENTS}\ninitrd --name initrd {url}/initrd\nboot", firmware), "LINUX-OK root=none"


def grub_program(server, path):
    files = f"(http,{HOST}:{server.http}){server.files}"
    with open(f"{path}/grub.cfg", "w") as out:
        out.write(f"net_bootp\nlinux {files}/vmlinuz {ARGUMENTS}\ninitrd {files}/initrd\nboot\n")
    modules = "part_gpt fat ext2 normal linux serial terminal echo net efinet http halt sleep".split()
    run("grub-mkimage", "-O", "x86_64-efi", "-p", "/", "-o", f"{path}/grub.efi", "-c", f"{path}/grub.cfg", *modules)
    return f"{path}/grub.efi"


def grub(server):
    path = folder()
    card = ["-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile=,bootindex=1"]
    return [*uefi(path), *esp(path, grub_program(server, path)), *card], "LINUX-OK root=none"


def curl_driver(server):
    drive = f"driver=raw,file.driver=http,file.url=http://127.0.0.1:{server.http}{server.disk},file.timeout=60"
    return ["-M", "pc,graphics=off", "-drive", f"{drive},if=virtio,readonly=on"], "LINUX-OK"


def http_boot(server, location):
    """A UEFI machine that boots a URL: an entry in the firmware's variables names it, as DHCP would."""
    path = folder()
    machine = uefi(path)
    with open(f"{path}/vars.fd", "r+b") as file:
        store = bytearray(file.read())
        at = struct.unpack_from("<H", store, 48)[0] + 28
        while struct.unpack_from("<H", store, at)[0] == 0x55AA:
            at += (60 + sum(struct.unpack_from("<II", store, at + 36)) + 3) & ~3
        url = f"http://{HOST}:{server.http}{location}".encode()
        device = struct.pack("<BBH", 3, 24, 4 + len(url)) + url + b"\x7f\xff\4\0"
        option = struct.pack("<IH", 1, len(device)) + "HTTP\0".encode("utf-16-le") + device
        guid = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
        for name, data in ("Boot0099\0", option), ("BootNext\0", struct.pack("<H", 0x99)):
            name = name.encode("utf-16-le")
            variable = struct.pack("<HBBI28xII", 0x55AA, 0x3F, 0, 7, len(name), len(data)) + guid + name + data
            store[at : at + len(variable)] = variable
            at += (len(variable) + 3) & ~3
        file.seek(0)
        file.write(store)
    return [*machine, "-m", "1280", "-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile=,bootindex=1"]


CLIENTS = [
    ("iPXE BIOS, sanboot", lambda server: san(server, "bios")),
    ("iPXE UEFI, sanboot", lambda server: san(server, "uefi")),
    ("iPXE BIOS, kernel + initrd", lambda server: kernel(server, "bios")),
    ("iPXE UEFI, kernel + initrd", lambda server: kernel(server, "uefi")),
    ("GRUB (UEFI), kernel + initrd", grub),
    ("UEFI HTTP boot of GRUB, kernel + initrd", lambda server: (http_boot(server, server.program), "LINUX-OK root=none")),
    ("UEFI HTTP boot of the image as a RAM disk", lambda server: (http_boot(server, server.image), "LINUX-OK")),
    ("QEMU's curl driver, BIOS", curl_driver),
]


def boot(server, make, cold):
    if cold in ("both", server.name):
        server.cold()
    arguments, marker = make(server)
    before = server.counts()
    seconds, seen = machine(arguments, marker)
    if seconds is None:
        sys.stderr.write(seen[-2000:].decode(errors="replace"))
        return None
    time.sleep(0.5)
    after = server.counts()
    asked = 1 if server.name == "clonegate" else 0  # the first question is counted in the second
    return seconds, after[0] - before[0] - asked, after[1] - before[1]


def table(servers):
    lines = ["| client | nginx, s | clonegate, s | ratio | requests: nginx / clonegate | MB: nginx / clonegate | failed |", "|---|---|---|---|---|---|---|"]
    for name, make in CLIENTS:
        if not re.search(options.only, name):
            continue
        for server in servers:
            if options.cold not in ("both", server.name):
                boot(server, make, "")
        got = {server.name: [] for server in servers}
        failed = 0
        for number in range(options.rounds):
            for server in servers if number % 2 == 0 else servers[::-1]:
                result = boot(server, make, options.cold)
                failed += result is None
                got[server.name].append(result)
                sys.stderr.write(f"{name} {server.name} {result}\n")
        pairs = [(a, b) for a, b in zip(got["nginx"], got["clonegate"]) if a and b]
        if not pairs:
            lines.append(f"| {name} | – | – | – | – | – | {failed} |")
            continue
        median = lambda at, side: statistics.median(pair[side][at] for pair in pairs)
        ratio = statistics.median(pair[1][0] / pair[0][0] for pair in pairs)
        lines.append(
            f"| {name} | {median(0, 0):.1f} | {median(0, 1):.1f} | **{ratio:.2f}** | {median(1, 0):.0f} / {median(1, 1):.0f} "
            f"| {median(2, 0) / 1e6:.1f} / {median(2, 1) / 1e6:.1f} | {failed} |"
        )
    return lines


def storm(gateway):
    lines = ["| machines at once | the last is up after, s | GETs of base data sent to the store | to those of one machine |", "|---|---|---|---|"]
    boot(gateway, lambda server: san(server, "bios"), "")
    alone = None
    for count in (1, 4):
        gateway.cold()
        before = gateway.samples()["clonegate_icache_store_requests_total"]
        results = [None] * count

        def one(at):
            arguments, marker = san(gateway, "bios", f"/v1/clones/pc-{at + 1}/disk")
            results[at] = machine(arguments, marker)[0]

        threads = [threading.Thread(target=one, args=(at,)) for at in range(count)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        after = gateway.samples()["clonegate_icache_store_requests_total"]
        worst = max(results) if None not in results else float("nan")
        asked = after - before
        alone = alone or asked
        lines.append(f"| {count} | {worst:.1f} | {asked:.0f} | {asked / max(alone, 1):.2f} |")
    return lines


signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
servers = []
try:
    servers.append(Nginx())
    servers.append(Gateway())
    shutil.copy(grub_program(servers[0], folder()), f"{work}/www/files/grub.efi")
    shutil.copy(grub_program(servers[1], folder()), f"{work}/efi/grub.efi")
    lines = storm(servers[1]) if options.storm else table(servers)
finally:
    for server in servers:
        server.stop()
print("\n".join(lines))
if options.out:
    with open(options.out, "a") as out:
        out.write("\n".join(lines) + "\n")
PYTHON
