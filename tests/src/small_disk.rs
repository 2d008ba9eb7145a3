//! A file system of a few megabytes, for tests of disks that are full.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// A tmpfs; unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk(TempDir);

impl SmallDisk {
    /// Mounts one of so many MiB; `None`, after saying so, where that is not permitted.
    ///
    /// # Panics
    /// When there is no temporary directory.
    pub fn mount(mib: u32) -> Option<Self> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mounted = mount(&format!("size={mib}m"), directory.path());
        if !mounted {
            println!("skipped: needs the right to mount a tmpfs");
        }
        mounted.then_some(Self(directory))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Makes it larger or smaller.
    ///
    /// # Panics
    /// When it cannot.
    pub fn resize(&self, mib: u32) {
        assert!(mount(&format!("remount,size={mib}m"), self.path()), "it cannot be resized");
    }
}

fn mount(options: &str, at: &Path) -> bool {
    let arguments = ["-t", "tmpfs", "-o", options, "clonegate-test"];
    Command::new("mount").args(arguments).arg(at).output().is_ok_and(|done| done.status.success())
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(self.path()).status());
    }
}
