//! Disk images that tests serve: a patterned raw image made here, and a small Linux made once from Debian packages.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::machine::run;
use crate::tree;

/// Everything that [`linux`] needs.
pub const LINUX_NEEDS: &[&str] = &[
    "apt-get",
    "busybox",
    "cpio",
    "depmod",
    "grub-mkimage",
    "mcopy",
    "mke2fs",
    "mkfs.vfat",
    "nbd-client",
    "sfdisk",
    "zstd",
];

/// Files of the small Linux.
#[derive(Debug, Clone)]
pub struct Linux {
    /// GPT, BIOS and UEFI GRUB, kernel + busybox, ext4 root with a checksummed payload.
    pub disk: PathBuf,
    /// Its kernel.
    pub kernel: PathBuf,
    /// Its initramfs.
    pub initrd: PathBuf,
}

/// A small real Linux, made from Debian packages by `tests/rig/make-linux-image.sh` the first time and kept in the target
/// directory. Its init says `LINUX-UP` on the serial line; see the script for what it does then.
///
/// # Panics
/// With the script's output, when it cannot be made.
pub fn linux() -> Linux {
    let dir = make("linux", &["tests/rig/make-linux-image.sh", "tests/rig/linux-init.sh"]);
    Linux { disk: dir.join("linux.raw"), kernel: dir.join("linux.vmlinuz"), initrd: dir.join("linux.initrd") }
}

/// A Debian with systemd whose root is meant to be a clone by NBD, made by debootstrap and `examples/boot` the first time and kept in the
/// target directory: the disk. It says `DEBIAN-OK` on the serial line and powers off.
///
/// # Panics
/// With the script's output, when it cannot be made.
pub fn debian() -> PathBuf {
    let sources = [
        "tests/rig/make-debian-image.sh",
        "tests/rig/debian-marker.sh",
        "examples/boot/nbd-root-debian.sh",
        "examples/boot/nbd-root-dracut.sh",
        "examples/boot/nbd-root-keep",
    ];
    make("debian", &sources).join("debian.raw")
}

/// Runs the first of `sources` unless it has made `name` of just these sources before; returns where.
fn make(name: &str, sources: &[&str]) -> PathBuf {
    let dir = target_dir().join("test-images");
    fs::create_dir_all(&dir).expect("the target directory is writable");
    // Several test programs may want it at once: one makes it.
    let lock = File::create(dir.join("lock")).expect("the target directory is writable");
    flock(&lock, FlockOperation::LockExclusive).expect("a lock on our own file");
    let made = dir.join(format!("{name}.stamp"));
    let recipe: String = sources.iter().map(|path| tree::read(path)).collect();
    if fs::read_to_string(&made).ok().as_deref() != Some(&recipe) {
        let script = tree::root().join(sources[0]);
        run("bash", &[&script.display().to_string(), &dir.display().to_string()]);
        fs::write(&made, &recipe).expect("the target directory is writable");
    }
    dir
}

/// Cargo's target directory, found from the running test.
pub fn target_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("a running program has a path");
    let profile = exe.ancestors().find(|dir| dir.ends_with("deps")).and_then(Path::parent);
    profile.and_then(Path::parent).expect("test programs are in target/<profile>/deps").to_path_buf()
}

/// Writes a raw image of `size` bytes: a boot-sector signature, patterned megabytes that all differ, and holes between them.
///
/// # Errors
/// When the file cannot be written.
pub fn patterned(path: &Path, size: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.set_len(size)?;
    let mut at = 0;
    while at < size {
        let length = usize::try_from((size - at).min(1 << 20)).unwrap_or(1 << 20);
        let mut block = pattern(at, length);
        if at == 0 && length >= 512 {
            block[510..512].copy_from_slice(&[0x55, 0xaa]);
        }
        file.seek(SeekFrom::Start(at))?;
        file.write_all(&block)?;
        at += 4 << 20; // three megabytes of hole after each of data
    }
    Ok(())
}

/// `length` bytes that name their place: every eight bytes hold a mix of their offset, so moved bytes never look right.
pub fn pattern(offset: u64, length: usize) -> Vec<u8> {
    let words = (offset / 8..).map(|word| (word ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xff51_afd7_ed55_8ccd));
    words.flat_map(|word| (word ^ (word >> 29)).to_le_bytes()).take(length).collect()
}
