//! The directory of the journal and its files.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clonegate_core::format::envelope;
use clonegate_core::format::journal::{ENTRIES_AT, JournalOwnerRecord, JournalSegmentRecord};
use clonegate_core::ids::Nonce;
use clonegate_core::{Error, Result};
use rustix::fs::FlockOperation;

use super::{JournalSettings, io_error};
use crate::clock::Clock;

const OWNER: &str = "owner";
const LOCK_TRIES: u32 = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Makes the directory, takes its lock, and reads or writes whose it is.
pub(super) fn enter(settings: &JournalSettings, clock: &Clock) -> Result<(Nonce, File)> {
    let directory = &settings.path;
    let shown = directory.display().to_string();
    std::fs::create_dir_all(directory).map_err(|e| io_error(directory, e))?;
    let lock_path = directory.join("lock");
    let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
    let lock = lock.map_err(|e| io_error(&lock_path, e))?;
    let locked = || rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
    // One who has just let go may have a child that is about to become another program, and holds it for that moment.
    let locked = (0..LOCK_TRIES).any(|n| {
        std::thread::sleep(if n > 0 { LOCK_PAUSE } else { Duration::ZERO });
        locked()
    });
    if !locked {
        return Err(Error::conflict("journal-in-use", "another process has the journal open")
            .on(shown)
            .hint("give every gateway a journal directory of its own"));
    }
    let path = directory.join(OWNER);
    match std::fs::read(&path) {
        Ok(bytes) => {
            let record: JournalOwnerRecord = envelope::decode(&bytes).map_err(|e| {
                e.on(path.display().to_string())
                    .hint("not a journal, or a damaged one: name another directory, or move this one away")
            })?;
            if record.owner != settings.owner {
                return Err(Error::conflict(
                    "journal-of-another",
                    format!("the journal belongs to {:?}, not to {:?}", record.owner, settings.owner),
                )
                .on(shown)
                .hint("name the directory that belongs to this gateway; flushed writes may be in it"));
            }
            Ok((record.journal, lock))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let foreign = std::fs::read_dir(directory).map_err(|e| io_error(directory, e))?;
            let foreign = foreign.filter_map(|entry| entry.ok()).any(|entry| {
                // The second is what a crash may leave of the first start.
                entry.file_name() != "lock" && entry.file_name() != "owner.new"
            });
            if foreign {
                return Err(Error::invalid("not-a-journal", "the directory holds other files and no journal")
                    .on(shown)
                    .hint("name an empty directory"));
            }
            let record = JournalOwnerRecord { journal: clock.nonce(), owner: settings.owner.clone() };
            let staged = directory.join("owner.new");
            let written = File::create(&staged).and_then(|mut file| {
                file.write_all(&envelope::encode(&record).map_err(std::io::Error::other)?)?;
                file.sync_all()?;
                std::fs::rename(&staged, &path)?;
                sync_directory(directory)
            });
            written.map_err(|e| io_error(&path, e))?;
            Ok((record.journal, lock))
        }
        Err(error) => Err(io_error(&path, error)),
    }
}

fn sync_directory(directory: &Path) -> std::io::Result<()> {
    File::open(directory)?.sync_all()
}

/// The path of file `n`.
pub(super) fn path_of(directory: &Path, n: u64) -> PathBuf {
    directory.join(format!("journal-{n:08}"))
}

/// The number of a journal file, by its name.
pub(super) fn number_of(name: &str) -> Option<u64> {
    name.strip_prefix("journal-").and_then(|n| n.parse().ok())
}

/// Makes file `n`, full of zeroes and synced, so that appending changes no metadata.
pub(super) fn make(directory: &Path, n: u64, bytes: u64) -> std::io::Result<File> {
    let path = path_of(directory, n);
    let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&path)?;
    if bytes > 0 {
        // Tells at once, rather than after most of it was written, that there is not so much room. A file system that cannot do that says
        // what it has to say when it is written.
        let room = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes);
        if matches!(room, Err(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT)) {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
    }
    let zeroes = vec![0; 1 << 20];
    let mut at = 0;
    while at < bytes {
        let part = usize::try_from(bytes - at).unwrap_or(usize::MAX).min(zeroes.len());
        file.write_all_at(&zeroes[..part], at)?;
        at += part as u64;
    }
    file.sync_all()?;
    sync_directory(directory)?;
    Ok(file)
}

/// Writes the head of a file for a generation of entries; generation 0 holds none.
pub(super) fn write_head(file: &File, journal: Nonce, generation: u64) -> std::io::Result<()> {
    let record = JournalSegmentRecord { journal, generation };
    let mut head = envelope::encode(&record).map_err(std::io::Error::other)?.to_vec();
    head.resize(usize::try_from(ENTRIES_AT).unwrap_or(4096), 0);
    file.write_all_at(&head, 0)
}
