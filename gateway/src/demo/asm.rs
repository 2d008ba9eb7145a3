//! An assembler for a boot sector: bytes, labels, and the two kinds of places that refer to them.

use std::collections::HashMap;

/// Where the BIOS puts a boot sector.
pub(super) const ORIGIN: u16 = 0x7c00;

/// A program being written.
#[derive(Debug, Default)]
pub(super) struct Asm {
    bytes: Vec<u8>,
    labels: HashMap<&'static str, u16>,
    fixups: Vec<(usize, &'static str, Fixup)>,
}

#[derive(Debug, Clone, Copy)]
enum Fixup {
    /// The address of the label, two bytes.
    Address,
    /// The distance to the label from behind this byte.
    Near,
    /// The distance to the label from behind these two bytes.
    Far,
}

impl Asm {
    /// These bytes as they are: an instruction without a label, or data.
    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next byte is called `name`.
    pub(super) fn label(&mut self, name: &'static str) {
        self.labels.insert(name, self.here());
    }

    /// An instruction that ends with the address of `label` plus `more`.
    pub(super) fn address(&mut self, opcode: &[u8], label: &'static str, more: u16) {
        self.put(opcode);
        self.fixups.push((self.bytes.len(), label, Fixup::Address));
        self.put(&more.to_le_bytes());
    }

    /// A jump within 127 bytes.
    pub(super) fn jump(&mut self, opcode: u8, label: &'static str) {
        self.put(&[opcode]);
        self.fixups.push((self.bytes.len(), label, Fixup::Near));
        self.put(&[0]);
    }

    /// `call label`.
    pub(super) fn call(&mut self, label: &'static str) {
        self.put(&[0xe8]);
        self.fixups.push((self.bytes.len(), label, Fixup::Far));
        self.put(&[0, 0]);
    }

    fn here(&self) -> u16 {
        ORIGIN + u16::try_from(self.bytes.len()).unwrap_or(u16::MAX - ORIGIN)
    }

    /// The program with every reference filled in; `None` when a label is missing or a jump too long, which a test rules out.
    pub(super) fn finish(mut self) -> Option<Vec<u8>> {
        for (at, label, fixup) in &self.fixups {
            let target = *self.labels.get(label)?;
            let behind = |length: u16| ORIGIN + u16::try_from(*at).unwrap_or(0) + length;
            match fixup {
                Fixup::Address => {
                    let more = u16::from_le_bytes([self.bytes[*at], self.bytes[at + 1]]);
                    self.bytes[*at..at + 2].copy_from_slice(&target.wrapping_add(more).to_le_bytes());
                }
                Fixup::Near => {
                    let distance = i32::from(target) - i32::from(behind(1));
                    self.bytes[*at] = i8::try_from(distance).ok()?.to_le_bytes()[0];
                }
                Fixup::Far => {
                    let distance = target.wrapping_sub(behind(2));
                    self.bytes[*at..at + 2].copy_from_slice(&distance.to_le_bytes());
                }
            }
        }
        Some(self.bytes)
    }
}
