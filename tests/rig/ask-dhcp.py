#!/usr/bin/env python3
"""Asks for an address as a booting machine does, and prints what it is to boot, as JSON.

ask-dhcp.py INTERFACE MAC ARCHITECTURE [ipxe] [VENDOR-CLASS]

ARCHITECTURE is that of RFC 4578 and its registry: 0 BIOS, 7 and 9 UEFI on x86-64, 16 UEFI HTTP boot on x86-64. With `ipxe` the machine
says that it is iPXE: option 175 and the user class. Frames are made here and sent raw, so the interface needs no address.
"""
import json, os, socket, struct, sys

interface, mac, architecture = sys.argv[1], bytes.fromhex(sys.argv[2].replace(":", "")), int(sys.argv[3])
ipxe = "ipxe" in sys.argv[4:]
vendor = next((word for word in sys.argv[4:] if word != "ipxe"), "PXEClient")
transaction = os.urandom(4)
MAGIC = b"\x63\x82\x53\x63"


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def frame(options):
    bootp = struct.pack("!BBBB4sHH", 1, 1, 6, 0, transaction, 0, 0x8000) + bytes(16) + mac + bytes(10 + 64 + 128)
    bootp += MAGIC + b"".join(bytes([code, len(value)]) + value for code, value in options) + b"\xff"
    bootp = bootp.ljust(300, b"\0")
    udp = struct.pack("!HHHH", 68, 67, 8 + len(bootp), 0)
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28 + len(bootp), 0, 0, 64, 17, 0, bytes(4), b"\xff" * 4)
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return b"\xff" * 6 + mac + b"\x08\x00" + head + udp + bootp


def answer(wanted):
    """The next answer to our transaction of this message type: its fixed fields, and its options."""
    while True:
        data = wire.recv(4096)
        if len(data) < 282 or data[12:14] != b"\x08\x00" or data[23] != 17:
            continue
        udp = 14 + (data[14] & 15) * 4
        if struct.unpack("!HH", data[udp : udp + 4]) != (67, 68):
            continue
        bootp = data[udp + 8 :]
        if bootp[0] != 2 or bootp[4:8] != transaction or bootp[236:240] != MAGIC:
            continue
        options, at = {}, 240
        while at < len(bootp) and bootp[at] != 255:
            if bootp[at] == 0:
                at += 1
                continue
            length = bootp[at + 1]
            options[bootp[at]] = options.get(bootp[at], b"") + bootp[at + 2 : at + 2 + length]
            at += 2 + length
        if options.get(53) == bytes([wanted]):
            return bootp, options


wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
wire.bind((interface, 0))
wire.settimeout(20)
said = [
    (60, f"{vendor}:Arch:{architecture:05d}:UNDI:003016".encode()),
    (93, struct.pack("!H", architecture)),
    (94, b"\x01\x03\x10"),
    (97, b"\0" + mac + bytes(10)),
    (55, bytes([1, 3, 6, 17, 43, 60, 66, 67, 97, 175])),
]
if ipxe:
    said += [(77, b"iPXE"), (175, b"\x13\x01\x01")]
wire.send(frame([(53, b"\x01")] + said))
bootp, offer = answer(2)
text = lambda value: value.split(b"\0")[0].decode()
print(
    json.dumps(
        {
            "address": socket.inet_ntoa(bootp[16:20]),
            "next_server": socket.inet_ntoa(bootp[20:24]),
            "file": text(offer.get(67, b"")) or text(bootp[108:236]),
            "vendor_class": text(offer.get(60, b"")),
        }
    )
)
