//! The boot sector of the demo: reads parts of the disk by BIOS calls, adds them up, and says whether they are right, on the screen
//! and on the first serial port.
//!
//! 16-bit code for a 386 or later. Memory: the sector itself at 0x7c00, the stack below it, the buffer at 0x8000.

use super::asm::{Asm, ORIGIN};

/// Where a part of the disk is read to.
const BUFFER: u16 = 0x8000;
/// Most sectors of one part: the buffer has 16 KiB.
pub(super) const PART_SECTORS_MAX: u16 = 32;
/// Bytes of a boot sector before its partition table.
pub(super) const CODE_BYTES: usize = 446;

/// What it prints before the sum when all is right.
pub(super) const OK: &[u8] = b"CLONEGATE DEMO OK checksum ";
/// What it prints before the sum when it is not.
pub(super) const BAD: &[u8] = b"CLONEGATE DEMO BAD checksum ";
/// What it prints when the BIOS cannot read.
pub(super) const UNREADABLE: &[u8] = b"CLONEGATE DEMO READ ERROR";

/// Some sectors that it reads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub(super) sector: u32,
    pub(super) count: u16,
}

/// The sum that the program computes, over the bytes of all parts.
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().fold(0, |sum: u32, word| sum.rotate_left(1).wrapping_add(u32::from_le_bytes(*word)))
}

/// The program that reads `parts` and expects their sum to be `expected`; `None` when it is too long, which a test rules out.
pub(super) fn program(parts: &[Part], expected: u32) -> Option<Vec<u8>> {
    let mut asm = Asm::default();
    begin(&mut asm);
    read_parts(&mut asm);
    tell(&mut asm);
    subroutines(&mut asm);
    data(&mut asm, parts, expected);
    asm.finish().filter(|bytes| bytes.len() <= CODE_BYTES)
}

/// Sets up segments, stack and serial port. The BIOS gives the number of the drive in DL.
fn begin(asm: &mut Asm) {
    asm.put(&[0xfa]); //                       cli
    asm.put(&[0x31, 0xc0]); //                 xor ax, ax
    asm.put(&[0x8e, 0xd8]); //                 mov ds, ax
    asm.put(&[0x8e, 0xc0]); //                 mov es, ax
    asm.put(&[0x8e, 0xd0]); //                 mov ss, ax
    asm.put(&[0xbc]); //                       mov sp, 0x7c00
    asm.put(&ORIGIN.to_le_bytes());
    asm.put(&[0xfb]); //                       sti
    asm.put(&[0xfc]); //                       cld
    asm.address(&[0xea], "normal", 0); //      jmp 0:normal    (some BIOSes begin at 07c0:0000)
    asm.put(&[0, 0]);
    asm.label("normal");
    asm.address(&[0x88, 0x16], "drive", 0); // mov [drive], dl
    // 115200 baud, 8 data bits, no parity, 1 stop bit, no interrupts.
    for (port, value) in [(0xf9, 0x00), (0xfb, 0x80), (0xf8, 0x01), (0xf9, 0x00), (0xfb, 0x03)] {
        asm.put(&[0xba, port, 0x03]); //       mov dx, 0x3f8 + n
        asm.put(&[0xb0, value]); //            mov al, value
        asm.put(&[0xee]); //                   out dx, al
    }
}

/// Goes through the table of parts: count (0 ends it), sector.
fn read_parts(asm: &mut Asm) {
    asm.address(&[0xbe], "parts", 0); //       mov si, parts
    asm.label("next");
    asm.put(&[0xad]); //                       lodsw           count
    asm.put(&[0x85, 0xc0]); //                 test ax, ax
    asm.jump(0x74, "judge"); //                jz judge
    asm.address(&[0xa3], "packet", 2); //      mov [packet+2], ax
    asm.put(&[0x89, 0xc1]); //                 mov cx, ax
    asm.put(&[0xc1, 0xe1, 7]); //              shl cx, 7       words of 4 bytes
    asm.put(&[0x66, 0xad]); //                 lodsd           sector
    asm.address(&[0x66, 0xa3], "packet", 8); // mov [packet+8], eax
    asm.put(&[0x56]); //                       push si
    asm.put(&[0x51]); //                       push cx
    asm.address(&[0xbe], "packet", 0); //      mov si, packet
    asm.address(&[0x8a, 0x16], "drive", 0); // mov dl, [drive]
    asm.put(&[0xb4, 0x42]); //                 mov ah, 0x42    extended read
    asm.put(&[0xcd, 0x13]); //                 int 0x13
    asm.put(&[0x59]); //                       pop cx
    asm.jump(0x72, "unreadable"); //           jc unreadable
    asm.put(&[0xbe]); //                       mov si, BUFFER
    asm.put(&BUFFER.to_le_bytes());
    asm.address(&[0x66, 0x8b, 0x1e], "sum", 0); // mov ebx, [sum]
    asm.label("add");
    asm.put(&[0x66, 0xad]); //                 lodsd
    asm.put(&[0x66, 0xd1, 0xc3]); //           rol ebx, 1
    asm.put(&[0x66, 0x01, 0xc3]); //           add ebx, eax
    asm.jump(0xe2, "add"); //                  loop add
    asm.address(&[0x66, 0x89, 0x1e], "sum", 0); // mov [sum], ebx
    asm.put(&[0x5e]); //                       pop si
    asm.jump(0xeb, "next"); //                 jmp next
}

/// Compares the sum, puts its eight digits behind the message, prints the message and stops.
fn tell(asm: &mut Asm) {
    asm.label("judge");
    asm.address(&[0xbe], "ok", 0); //          mov si, ok
    asm.address(&[0xbf], "ok digits", 0); //   mov di, its digits
    asm.address(&[0x66, 0x8b, 0x1e], "sum", 0); // mov ebx, [sum]
    asm.address(&[0x66, 0x3b, 0x1e], "expected", 0); // cmp ebx, [expected]
    asm.jump(0x74, "digits"); //               je digits
    asm.address(&[0xbe], "bad", 0); //         mov si, bad
    asm.address(&[0xbf], "bad digits", 0); //  mov di, its digits
    asm.label("digits");
    asm.put(&[0xb9, 8, 0]); //                 mov cx, 8
    asm.label("digit");
    asm.put(&[0x66, 0xc1, 0xc3, 4]); //        rol ebx, 4
    asm.put(&[0x88, 0xd8]); //                 mov al, bl
    asm.put(&[0x24, 0x0f]); //                 and al, 15
    asm.put(&[0x3c, 10]); //                   cmp al, 10
    asm.jump(0x72, "decimal"); //              jb decimal
    asm.put(&[0x04, b'a' - b'0' - 10]); //     add al, 'a' - '0' - 10
    asm.label("decimal");
    asm.put(&[0x04, b'0']); //                 add al, '0'
    asm.put(&[0xaa]); //                       stosb
    asm.jump(0xe2, "digit"); //                loop digit
    asm.jump(0xeb, "print"); //                jmp print
    asm.label("unreadable");
    asm.address(&[0xbe], "unreadable text", 0); // mov si, unreadable text
    asm.label("print");
    // One after the other: a BIOS that copies the screen to the serial port would mix the two.
    asm.put(&[0x56]); //                       push si
    asm.call("screen"); //                     call screen
    asm.put(&[0x5e]); //                       pop si
    asm.call("serial"); //                     call serial
    asm.label("stop");
    asm.put(&[0xf4]); //                       hlt
    asm.jump(0xeb, "stop"); //                 jmp stop
}

/// Print the text at SI, which a zero ends.
fn subroutines(asm: &mut Asm) {
    asm.label("screen");
    asm.put(&[0xac]); //                       lodsb
    asm.put(&[0x84, 0xc0]); //                 test al, al
    asm.jump(0x74, "return"); //               jz return
    asm.put(&[0xb4, 0x0e]); //                 mov ah, 0x0e    teletype
    asm.put(&[0xbb, 7, 0]); //                 mov bx, 7
    asm.put(&[0x56]); //                       push si
    asm.put(&[0xcd, 0x10]); //                 int 0x10
    asm.put(&[0x5e]); //                       pop si
    asm.jump(0xeb, "screen"); //               jmp screen
    asm.label("serial");
    asm.put(&[0xac]); //                       lodsb
    asm.put(&[0x84, 0xc0]); //                 test al, al
    asm.jump(0x74, "return"); //               jz return
    asm.put(&[0x88, 0xc4]); //                 mov ah, al
    asm.put(&[0x31, 0xc9]); //                 xor cx, cx      so long at most
    asm.put(&[0xba, 0xfd, 0x03]); //           mov dx, 0x3fd
    asm.label("busy");
    asm.put(&[0xec]); //                       in al, dx
    asm.put(&[0xa8, 0x20]); //                 test al, 0x20   can it take a byte?
    asm.jump(0xe1, "busy"); //                 loopz busy
    asm.put(&[0xb2, 0xf8]); //                 mov dl, 0xf8
    asm.put(&[0x88, 0xe0]); //                 mov al, ah
    asm.put(&[0xee]); //                       out dx, al
    asm.jump(0xeb, "serial"); //               jmp serial
    asm.label("return");
    asm.put(&[0xc3]); //                       ret
}

fn data(asm: &mut Asm, parts: &[Part], expected: u32) {
    asm.label("packet"); // what the extended read takes: its size, 0, count, offset, segment, sector
    asm.put(&[16, 0, 0, 0]);
    asm.put(&BUFFER.to_le_bytes());
    asm.put(&[0; 10]);
    asm.label("drive");
    asm.put(&[0]);
    asm.label("sum");
    asm.put(&[0; 4]);
    asm.label("expected");
    asm.put(&expected.to_le_bytes());
    asm.label("parts");
    for part in parts {
        asm.put(&part.count.to_le_bytes());
        asm.put(&part.sector.to_le_bytes());
    }
    asm.put(&[0; 2]);
    for (label, digits, text) in [("ok", "ok digits", OK), ("bad", "bad digits", BAD)] {
        asm.label(label);
        asm.put(text);
        asm.label(digits);
        asm.put(b"00000000\r\n\0");
    }
    asm.label("unreadable text");
    asm.put(UNREADABLE);
    asm.put(b"\r\n\0");
}
