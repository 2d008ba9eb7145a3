//! What UEFI machines of the tests are prepared with: boot entries in OVMF's variable store, and GRUB as an EFI program.

use std::path::Path;

use crate::machine::run;

/// `EFI_GLOBAL_VARIABLE`, as it is stored.
const GLOBAL: [u8; 16] = [0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0, 0xe0, 0x98, 0x03, 0x2b, 0x8c];
/// Size of the header of a stored variable, bytes (`AUTHENTICATED_VARIABLE_HEADER`).
const HEADER_BYTES: usize = 60;
const VARIABLE_START: u16 = 0x55aa;
/// Number of our boot entry; OVMF makes its own from zero upward.
const ENTRY: u16 = 0x99;

/// Makes an empty OVMF variable store boot `url` by UEFI HTTP boot, once: what DHCP's option 60 `HTTPClient` and a boot file name do
/// at a site. QEMU's user network gives the address.
///
/// # Panics
/// When `store` is no variable store.
pub fn boot_from_url(store: &Path, url: &str) {
    let mut bytes = std::fs::read(store).expect("the variable store is there");
    assert_eq!(&bytes[40..44], b"_FVH", "a firmware volume");
    let mut at = usize::from(read_u16(&bytes, 48)) + 28;
    while read_u16(&bytes, at) == VARIABLE_START {
        let length = HEADER_BYTES + read_u32(&bytes, at + 36) + read_u32(&bytes, at + 40);
        at = (at + length).next_multiple_of(4);
    }
    // EFI_LOAD_OPTION: attributes (active), length of the device path, description, and a path of one URI node and its end.
    let mut path = vec![3, 24];
    path.extend(u16::try_from(4 + url.len()).expect("a short URL").to_le_bytes());
    path.extend(url.as_bytes());
    path.extend([0x7f, 0xff, 4, 0]);
    let mut option = 1_u32.to_le_bytes().to_vec();
    option.extend(u16::try_from(path.len()).expect("a short path").to_le_bytes());
    option.extend(utf16("HTTP"));
    option.extend(path);
    for (name, data) in [(format!("Boot{ENTRY:04X}"), option), ("BootNext".to_owned(), ENTRY.to_le_bytes().to_vec())] {
        let variable = variable(&name, &data);
        bytes[at..at + variable.len()].copy_from_slice(&variable);
        at = (at + variable.len()).next_multiple_of(4);
    }
    std::fs::write(store, bytes).expect("the machine's directory is writable");
}

fn variable(name: &str, data: &[u8]) -> Vec<u8> {
    let name = utf16(name);
    let mut bytes = VARIABLE_START.to_le_bytes().to_vec();
    bytes.extend([0x3f, 0]); // added, and in no transition
    bytes.extend(7_u32.to_le_bytes()); // kept, for the boot services and for the system
    bytes.extend([0; 28]); // monotonic count, time, public key
    bytes.extend(u32::try_from(name.len()).expect("a short name").to_le_bytes());
    bytes.extend(u32::try_from(data.len()).expect("short data").to_le_bytes());
    bytes.extend(GLOBAL);
    assert_eq!(bytes.len(), HEADER_BYTES);
    bytes.extend(name);
    bytes.extend(data);
    bytes
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
}

fn read_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn read_u32(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize
}

/// Makes GRUB for UEFI, with its http module, as the one file `program`; it runs `config`, whose commands are those of GRUB's rescue
/// parser: no conditions, no menus.
///
/// # Panics
/// With what `grub-mkimage` printed, when it fails.
pub fn grub(program: &Path, config: &str) {
    let file = program.with_extension("cfg");
    std::fs::write(&file, config).expect("the directory is writable");
    let (out, config) = (program.display().to_string(), file.display().to_string());
    let modules = "part_gpt fat ext2 normal linux serial terminal echo search loopback net efinet http halt sleep";
    let mut arguments = vec!["-O", "x86_64-efi", "-p", "/", "-o", &out, "-c", &config];
    arguments.extend(modules.split(' '));
    run("grub-mkimage", &arguments);
}
