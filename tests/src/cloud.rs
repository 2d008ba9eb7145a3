//! A Debian with cloud-init, made once from packages and kept in the target directory.

use std::fs::{self, File};
use std::path::PathBuf;

use rustix::fs::{FlockOperation, flock};

use crate::images::target_dir;
use crate::machine::run;
use crate::tree;

/// Files of the Debian.
#[derive(Debug, Clone)]
pub struct CloudImage {
    /// An ext4 file system labelled `CLOUDROOT`.
    pub root: PathBuf,
    /// Its kernel.
    pub kernel: PathBuf,
    /// Its initramfs.
    pub initrd: PathBuf,
}

/// A minimal Debian with systemd, cloud-init and an SSH server, made by `tests/rig/make-cloud-image.sh` the first time. What `cloud-report.sh` says on the
/// serial line is in lines that begin with `CLOUD-`; the last is `CLOUD-DONE`.
///
/// # Panics
/// With the script's output, when it cannot be made.
pub fn image() -> CloudImage {
    let rig = tree::root().join("tests/rig");
    let dir = target_dir().join("test-images");
    fs::create_dir_all(&dir).expect("the target directory is writable");
    // Several test programs may want it at once: one makes it.
    let lock = File::create(dir.join("cloud.lock")).expect("the target directory is writable");
    flock(&lock, FlockOperation::LockExclusive).expect("a lock on our own file");
    let made = dir.join("cloud.stamp");
    let recipe: String = ["make-cloud-image.sh", "cloud-report.sh"]
        .map(|name| fs::read_to_string(rig.join(name)).expect("the script is there"))
        .concat();
    if fs::read_to_string(&made).ok().as_deref() != Some(&recipe) {
        run("bash", &[&rig.join("make-cloud-image.sh").display().to_string(), &dir.display().to_string()]);
        fs::write(&made, &recipe).expect("the target directory is writable");
    }
    CloudImage { root: dir.join("cloud.raw"), kernel: dir.join("cloud.vmlinuz"), initrd: dir.join("cloud.initrd") }
}
