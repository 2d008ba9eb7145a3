//! External programs that a test needs: found, or the test is left out and says so.

use std::env;
use std::path::PathBuf;

/// Set to `1`, a missing program fails the test instead of leaving it out. `.ci/run` sets it.
pub const REQUIRE_CLIENTS: &str = "CLONEGATE_REQUIRE_CLIENTS";

/// Which Debian package has a program or file. `tests/rig/packages.txt` names the same packages for CI.
const PACKAGES: &[(&str, &str)] = &[
    ("/boot/ipxe.efi", "ipxe"),
    ("/usr/lib/grub/x86_64-efi/http.mod", "grub-efi-amd64-bin"),
    ("/usr/lib/ipxe/qemu/efi-virtio.rom", "ipxe-qemu"),
    ("/usr/lib/ipxe/undionly.kpxe", "ipxe"),
    ("/usr/lib/x86_64-linux-gnu/qemu/block-curl.so", "qemu-block-extra"),
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "ovmf"),
    ("apt-get", "apt"),
    ("bash", "bash"),
    ("busybox", "busybox-static"),
    ("ceph", "ceph-common"),
    ("ceph-mon", "ceph-mon"),
    ("ceph-osd", "ceph-osd"),
    ("cpio", "cpio"),
    ("curl", "curl"),
    ("debootstrap", "debootstrap"),
    ("depmod", "kmod"),
    ("debugfs", "e2fsprogs"),
    ("dnsmasq", "dnsmasq-base"),
    ("e2fsck", "e2fsprogs"),
    ("fio", "fio"),
    ("fsck.vfat", "dosfstools"),
    ("git", "git"),
    ("grub-mkimage", "grub-common"),
    ("ip", "iproute2"),
    ("kea-dhcp4", "kea-dhcp4-server"),
    ("mcopy", "mtools"),
    ("mke2fs", "e2fsprogs"),
    ("mkfs.vfat", "dosfstools"),
    ("mtype", "mtools"),
    ("nbd-client", "nbd-client"),
    ("nbdcopy", "libnbd-bin"),
    ("nbdfuse", "libnbd-bin"),
    ("nbdinfo", "libnbd-bin"),
    ("nbdsh", "python3-libnbd"),
    ("nginx", "nginx-light"),
    ("python3", "python3"),
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("qemu-nbd", "qemu-utils"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("radosgw", "radosgw"),
    ("sfdisk", "fdisk"),
    ("umount", "mount"),
    ("unshare", "util-linux"),
    ("virt-xml-validate", "libvirt-clients"),
    ("ssh-keygen", "openssh-client"),
    ("wrk", "wrk"),
    ("xorriso", "xorriso"),
    ("zstd", "zstd"),
];

/// Where `program` is; a name with a slash is a file that must be there. Looks in `PATH` and the system directories.
pub fn find(program: &str) -> Option<PathBuf> {
    if program.starts_with('/') {
        return Some(PathBuf::from(program)).filter(|path| path.exists());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    env::split_paths(&path).chain(system).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// What to say when `program` is missing.
pub fn missing(program: &str) -> String {
    let package = PACKAGES.iter().find(|(name, _)| *name == program).map_or("unknown", |(_, package)| package);
    format!("needs {program} (Debian package {package})")
}

/// Whether a missing program is a failure.
pub fn required() -> bool {
    env::var(REQUIRE_CLIENTS).is_ok_and(|value| value == "1")
}

/// The program, or `None` after saying that the test is left out. For plain `#[test]`s, which cannot be counted as
/// ignored at run time; client tests use [`crate::harness`], which can.
///
/// # Panics
/// When it is missing and `CLONEGATE_REQUIRE_CLIENTS=1`.
pub fn need(program: &str) -> Option<PathBuf> {
    let found = find(program);
    if found.is_none() {
        let text = missing(program);
        assert!(!required(), "{text}, and {REQUIRE_CLIENTS}=1");
        println!("skipped: {text}");
    }
    found
}

/// The packages that the table above names, for the check against what CI installs.
pub fn packages() -> impl Iterator<Item = &'static str> {
    PACKAGES.iter().map(|(_, package)| *package)
}
