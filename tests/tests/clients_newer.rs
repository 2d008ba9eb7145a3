//! Boot loaders and firmware that are newer than Debian 12's boot from clones: those in the folder that `CLONEGATE_ROMS` names.
//! `tests/rig/newer-roms.sh FOLDER` fetches them.

use std::path::Path;
use std::time::Duration;

use clonegate_tests::machine::{Firmware, HOST, Roms};
use clonegate_tests::{Gateway, Machine, cases, images};

cases! {
    "CLONEGATE_ROMS", "qemu-system-x86_64", "apt-get", "busybox", "cpio", "depmod", "grub-mkimage", "mcopy", "mke2fs", "mkfs.vfat",
    "nbd-client", "python3", "sfdisk", "zstd" => a_newer_ipxe_for_bios_boots_a_real_linux;
    "CLONEGATE_ROMS", "qemu-system-x86_64", "apt-get", "busybox", "cpio", "depmod", "grub-mkimage", "mcopy", "mke2fs", "mkfs.vfat",
    "nbd-client", "python3", "sfdisk", "zstd" => a_newer_ipxe_for_uefi_boots_a_real_linux;
    "CLONEGATE_ROMS", "qemu-system-x86_64", "apt-get", "busybox", "cpio", "depmod", "grub-mkimage", "mcopy", "mke2fs", "mkfs.vfat",
    "nbd-client", "python3", "sfdisk", "zstd" => a_newer_ovmf_makes_a_ram_disk_of_a_clone;
}

/// For one boot on a machine that does much else. Nothing is concluded from how long it takes.
const PATIENCE: Duration = Duration::from_secs(420);

fn roms() -> Roms {
    Roms::newer(Path::new(&std::env::var_os("CLONEGATE_ROMS").expect("it is among the needs")))
}

/// A gateway with the small Linux as clone `pc`, and how a guest reaches its bytes.
fn linux() -> (Gateway, String) {
    let gateway = Gateway::up(&["--clones", "1"]);
    gateway.cli_ok(&["template", "import", "linux", images::linux().disk.to_str().unwrap(), "--format", "raw"]);
    gateway.cli_ok(&["clone", "create", "pc", "--template", "linux"]);
    let disk = format!("http://{HOST}:{}/v1/clones/pc/disk", gateway.http().port());
    (gateway, disk)
}

fn boots_by_san(firmware: Firmware) -> String {
    let (gateway, disk) = linux();
    let nbd = format!("type=1,serial=clonegate.nbd={HOST}:{}/pc", gateway.nbd().port());
    let machine = Machine::with_roms(firmware, roms()).with_ipxe(firmware, &format!("sanboot --drive 0x80 {disk}"));
    let serial = machine.with(&["-smbios", &nbd]).failing_on("LINUX-FAIL").boot("LINUX-OK", PATIENCE);
    assert!(serial.has("mode=rw boots=1"), "{}", serial.text);
    serial.text
}

fn a_newer_ipxe_for_bios_boots_a_real_linux() {
    assert!(boots_by_san(Firmware::Bios).contains("firmware=bios"));
}

fn a_newer_ipxe_for_uefi_boots_a_real_linux() {
    assert!(boots_by_san(Firmware::Uefi).contains("firmware=uefi"));
}

fn a_newer_ovmf_makes_a_ram_disk_of_a_clone() {
    let (_gateway, disk) = linux();
    let machine =
        Machine::with_roms(Firmware::Uefi, roms()).with_uefi_http(&format!("{disk}.img")).with(&["-m", "1280"]);
    let serial = machine.failing_on("LINUX-FAIL").failing_on("LINUX-NODISK").boot("LINUX-OK", PATIENCE);
    assert!(serial.has("firmware=uefi") && serial.has("root=/dev/pmem0p3"), "{}", serial.text);
}
