//! Ballast: a little room that a directory keeps for whoever makes room. On a full disk it is given up, piece by piece, to the small records that
//! a deletion puts before anything goes.
//!
//! The pieces are files beside the objects. They are called as staged files are, so nobody lists them.

use std::fs::{self, File, OpenOptions};
use std::future::Future;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clonegate_core::{ErrorKind, Result};
use parking_lot::Mutex;
use rustix::fs::FallocateFlags;

use super::Store;

/// What a piece is called before its number.
const NAME: &str = "ballast#";
/// Bytes of a piece: some records with their directories.
const PIECE_BYTES: u64 = 64 << 10;
/// Most pieces: 4 MiB.
const PIECES_MAX: u64 = 64;
/// The ballast takes at most one part in so many of the file system.
const PART: u64 = 64;
/// It is made when so many times its size are free, so that it never takes the last room.
const FREE_TIMES: u64 = 4;
/// Pieces that one put may take, when others are quicker to use what it gave up.
const PIECES_A_PUT: usize = 4;

tokio::task_local! {
    static MAKES_ROOM: ();
}

/// Runs work that makes room in the end: its puts may use the ballast of a full directory.
pub async fn making_room<T>(work: impl Future<Output = T>) -> T {
    MAKES_ROOM.scope((), work).await
}

/// Whether this is part of [`making_room`], for who goes on in another task.
pub fn makes_room() -> bool {
    MAKES_ROOM.try_with(|()| ()).is_ok()
}

/// The ballast of one directory.
#[derive(Debug)]
pub(super) struct Ballast {
    root: PathBuf,
    /// Held while pieces are made or given up.
    turn: Mutex<()>,
    /// Held by the put that uses a piece, so that many at once do not take one each.
    using: tokio::sync::Mutex<()>,
}

impl Ballast {
    pub(super) fn of(root: &Path) -> Self {
        Self { root: root.to_owned(), turn: Mutex::default(), using: tokio::sync::Mutex::default() }
    }

    fn piece(&self, number: u64) -> PathBuf {
        self.root.join(format!("{NAME}{number}"))
    }

    /// Gives a piece up; tells whether there was one. Blocks.
    fn give_up(&self) -> bool {
        let _turn = self.turn.lock();
        (0..PIECES_MAX).rev().any(|number| fs::remove_file(self.piece(number)).is_ok())
    }

    /// Makes the pieces that are missing when there is ample room. Blocks.
    fn make(&self) -> io::Result<()> {
        let _turn = self.turn.lock();
        let stat = rustix::fs::statvfs(&self.root)?;
        let size = stat.f_blocks.saturating_mul(stat.f_frsize);
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let pieces = (size / PART / PIECE_BYTES).min(PIECES_MAX);
        if free < pieces * PIECE_BYTES * FREE_TIMES {
            return Ok(());
        }
        for number in 0..pieces {
            let path = self.piece(number);
            let file = match OpenOptions::new().write(true).create_new(true).open(&path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                opened => opened?,
            };
            if let Err(e) = fill(&file, number) {
                drop(fs::remove_file(&path));
                return Err(e);
            }
        }
        Ok(())
    }
}

/// Whether a file of this name in the root of a store is a piece.
pub(super) fn is_piece(name: &str) -> bool {
    name.starts_with(NAME)
}

/// Makes a file take its room on the disk.
fn fill(mut file: &File, number: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, PIECE_BYTES) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS | rustix::io::Errno::INVAL) => {
            // Not to be made smaller by a file system that compresses.
            let mut noise = vec![0; usize::try_from(PIECE_BYTES).unwrap_or(0)];
            blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut noise);
            file.write_all(&noise)?;
            file.sync_data()
        }
        Err(e) => Err(e.into()),
    }
}

impl Store {
    /// Makes the ballast of a directory, or what is missing of it, when there is ample room.
    pub async fn keep_ballast(&self) {
        let Some(ballast) = self.0.ballast.clone() else { return };
        let made = tokio::task::spawn_blocking(move || ballast.make()).await;
        if let Ok(Err(error)) = made {
            tracing::debug!(store = self.label(), %error, "it has no ballast");
        }
    }

    /// Does `put`, and again on the room of the ballast when it is one that makes room and there is no other.
    pub(super) async fn on_ballast<T, F>(&self, put: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let is_full = |done: &Result<T>| done.as_ref().is_err_and(|error| error.kind() == ErrorKind::Exhausted);
        let done = put().await;
        let Some(ballast) = self.0.ballast.as_ref().filter(|_| is_full(&done) && makes_room()) else { return done };
        let _using = ballast.using.lock().await;
        // Whoever was first may have left some of its piece.
        let mut done = put().await;
        for _ in 0..PIECES_A_PUT {
            if !is_full(&done) {
                break;
            }
            let giving = Arc::clone(ballast);
            if !tokio::task::spawn_blocking(move || giving.give_up()).await.unwrap_or(false) {
                break;
            }
            tracing::info!(store = self.label(), "its disk is full: a piece of its ballast is given up to make room");
            done = put().await;
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::store::{StoreConfig, keys};

    fn pieces(root: &Path) -> usize {
        let names = fs::read_dir(root).unwrap().flatten().map(|entry| entry.file_name());
        names.filter(|name| is_piece(&name.to_string_lossy())).count()
    }

    #[tokio::test]
    async fn ballast_is_bounded_seen_by_nobody_and_made_again() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(&StoreConfig::new(format!("file://{}", root.path().display())), &Clock::system());
        let store = store.unwrap();
        store.keep_ballast().await;
        let made = pieces(root.path());
        assert!(made as u64 <= PIECES_MAX);
        assert!(store.list(&keys::all()).await.unwrap().is_empty());
        let ballast = Ballast::of(root.path());
        for _ in 0..made {
            assert!(ballast.give_up());
        }
        assert!(!ballast.give_up(), "nothing is left to give up");
        store.keep_ballast().await;
        assert_eq!(pieces(root.path()), made);
    }
}
