//! What outlives the process about writes that were accepted and are stored nowhere yet.
//!
//! A machine that reconnects after a crash must not be told that writes are flushed which are gone. So each owned volume has a
//! small file beside the journal that says whether anything accepted is neither in the store nor in the journal. It is not
//! synced: a process that is killed leaves the page cache behind, and after a crash of the host, which another boot id
//! tells, the file is not believed. See ADR 42.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use clonegate_core::ids::CloneId;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What the file of a volume says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing that can be believed.
    Nothing,
    /// When its last owner here ended, everything accepted was stored.
    Settled,
    /// It was not.
    Unsettled,
}

/// The files of all volumes.
#[derive(Debug)]
pub(crate) struct Unsettled {
    directory: Option<PathBuf>,
    boot: String,
}

/// The file of one volume that is owned.
#[derive(Debug, Default)]
pub(crate) struct Mark {
    file: Option<(File, u64)>,
    unsettled: bool,
}

impl Unsettled {
    /// Keeps the files in the directory of the journal; without one nothing is remembered, and nothing believed.
    pub(crate) fn open(journal: Option<&Path>) -> Self {
        let directory = journal.map(|journal| journal.join("unsettled"));
        if let Some(directory) = &directory
            && let Err(error) = fs::create_dir_all(directory)
        {
            tracing::warn!(directory = %directory.display(), %error, "what is unsettled cannot be noted");
        }
        let boot = fs::read_to_string(BOOT_ID).map(|text| text.trim().to_owned()).unwrap_or_default();
        Self { directory, boot }
    }

    fn path(&self, clone: CloneId) -> Option<PathBuf> {
        self.directory.as_ref().map(|directory| directory.join(clone.to_string()))
    }

    /// What is known of a volume.
    pub(crate) fn found(&self, clone: CloneId) -> Found {
        let text = self.path(clone).and_then(|path| fs::read_to_string(path).ok());
        match text.as_deref().and_then(|text| text.split_once('\n')) {
            Some((boot, "settled  ")) if boot == self.boot && !boot.is_empty() => Found::Settled,
            Some((_, "unsettled")) => Found::Unsettled,
            _ => Found::Nothing,
        }
    }

    /// Begins the file of a volume that is owned from now on.
    pub(crate) fn begin(&self, clone: CloneId, unsettled: bool) -> Mark {
        let Some(path) = self.path(clone) else { return Mark { file: None, unsettled } };
        let begun = OpenOptions::new().create(true).truncate(true).write(true).open(&path).and_then(|file| {
            let head = format!("{}\n", self.boot);
            file.write_all_at(format!("{head}{}", word(unsettled)).as_bytes(), 0)?;
            Ok((file, head.len() as u64))
        });
        let file = match begun {
            Ok(file) => Some(file),
            Err(error) => {
                // What an earlier owner noted is no longer so.
                tracing::warn!(path = %path.display(), %error, "what is unsettled cannot be noted");
                let _ = fs::remove_file(&path);
                None
            }
        };
        Mark { file, unsettled }
    }

    /// Removes the file of a volume that was closed, or is gone.
    pub(crate) fn forget(&self, clone: CloneId) {
        if let Some(path) = self.path(clone) {
            let _ = fs::remove_file(path);
        }
    }
}

/// Both as long, so that writing one over the other is a single call.
fn word(unsettled: bool) -> &'static str {
    if unsettled { "unsettled" } else { "settled  " }
}

impl Mark {
    /// What was noted last.
    pub(crate) fn is_unsettled(&self) -> bool {
        self.unsettled
    }

    /// Notes whether anything accepted is stored nowhere. Costs nothing when it is so already.
    pub(crate) fn set(&mut self, unsettled: bool) {
        if self.unsettled == unsettled {
            return;
        }
        self.unsettled = unsettled;
        if let Some((file, at)) = &self.file
            && let Err(error) = file.write_all_at(word(unsettled).as_bytes(), *at)
        {
            tracing::warn!(%error, "what is unsettled cannot be noted");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn what_is_unsettled_is_known_to_the_next_process_and_settled_only_within_one_boot() {
        let dir = tempfile::tempdir().unwrap();
        let clone: CloneId = Clock::system().id();
        let open = || Unsettled::open(Some(dir.path()));
        assert_eq!(open().found(clone), Found::Nothing);
        let mut mark = open().begin(clone, false);
        assert_eq!(open().found(clone), Found::Settled);
        mark.set(true);
        assert_eq!(open().found(clone), Found::Unsettled);
        mark.set(false);
        assert_eq!(open().found(clone), Found::Settled);
        let rebooted = Unsettled { boot: "another".to_owned(), ..open() };
        assert_eq!(rebooted.found(clone), Found::Nothing, "the page cache of another boot is gone");
        mark.set(true);
        assert_eq!(rebooted.found(clone), Found::Unsettled);
        open().forget(clone);
        assert_eq!(open().found(clone), Found::Nothing);
        assert_eq!(Unsettled::open(None).found(clone), Found::Nothing);
    }
}
