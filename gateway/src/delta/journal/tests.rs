//! What a journal gives back after its files were cut, torn or damaged at every byte, and after its disk was full.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc;

use bytes::Bytes;
use clonegate_core::format::journal::{MARK_BYTES, decode_entry};
use clonegate_core::units::BlockIndex;

use super::*;

const BLOCK: usize = 4096;

fn settings(path: &Path) -> JournalSettings {
    JournalSettings {
        path: path.to_owned(),
        owner: "a gateway".to_owned(),
        file_bytes: 1 << 20,
        inline: true,
        full: Arc::default(),
    }
}

fn clone(n: u8) -> CloneId {
    CloneId::from_bytes([n; 16])
}

/// Batch `number` of a clone: a block that says which, and some zeroes.
fn batch(of: u8, number: u64) -> Vec<Run> {
    let fill = of.wrapping_mul(31).wrapping_add(u8::try_from(number).unwrap());
    vec![
        Run { start: BlockIndex(number), blocks: 1, data: Some(Bytes::from(vec![fill; BLOCK])) },
        Run { start: BlockIndex(1000), blocks: 1 << 20, data: None },
    ]
}

fn at(number: u64) -> BatchAt {
    BatchAt { epoch: Epoch(1), number }
}

fn submission(of: u8, number: u64, runs: Vec<Run>, done: mpsc::Sender<Result<()>>) -> Submission {
    let done = Box::new(move |result| drop(done.send(result)));
    Submission { clone: clone(of), at: at(number), change: number, time_ms: 1, runs, done }
}

/// Writes one batch, which is a group of its own, and says how that went.
fn put(journal: &Journal, of: u8, number: u64) -> Result<()> {
    let (done, told) = mpsc::channel();
    journal.submit(submission(of, number, batch(of, number), done));
    told.recv().expect("inline: it is told at once")
}

/// What a journal gives back, each batch checked to be what was written. Numbers by clone.
fn found(journal: &Journal) -> BTreeMap<u8, Vec<u64>> {
    let mut all = BTreeMap::new();
    for id in journal.pending() {
        let of = id.bytes()[0];
        let entries = journal.read_pending(id).expect("what was found can be read");
        for entry in &entries {
            let wanted = batch(of, entry.record.number);
            assert_eq!(entry.runs.len(), wanted.len());
            for (run, wanted) in entry.runs.iter().zip(&wanted) {
                assert!(
                    (run.start, run.blocks, &run.data) == (wanted.start, wanted.blocks, &wanted.data),
                    "wrong bytes"
                );
            }
        }
        all.insert(of, entries.iter().map(|entry| entry.record.number).collect());
    }
    all
}

/// The batches of two clones, in the order in which they were acknowledged, and where each ended in the file.
fn written(directory: &Path) -> (Vec<(u8, u64)>, Vec<usize>, Vec<u8>) {
    let clock = Clock::simulated(1);
    let journal = Journal::open(settings(directory), &clock).unwrap();
    let order = [(1, 1), (2, 1), (1, 2), (1, 3), (2, 2), (1, 4)];
    let path = file::path_of(directory, 0);
    let mut ends = Vec::new();
    for (of, number) in order {
        put(&journal, of, number).unwrap();
        ends.push(usize::try_from(path.metadata().unwrap().len()).unwrap());
    }
    // As a process that is killed: nothing is tidied up.
    let bytes = std::fs::read(&path).unwrap();
    drop(journal);
    (order.to_vec(), ends, bytes)
}

fn numbers(order: &[(u8, u64)]) -> BTreeMap<u8, Vec<u64>> {
    let mut all: BTreeMap<u8, Vec<u64>> = BTreeMap::new();
    for (of, number) in order {
        all.entry(*of).or_default().push(*number);
    }
    all
}

fn reopened(directory: &Path, bytes: &[u8]) -> Journal {
    std::fs::write(file::path_of(directory, 0), bytes).unwrap();
    Journal::open(settings(directory), &Clock::simulated(2)).expect("no damage keeps a journal from being opened")
}

#[test]
fn a_journal_that_is_cut_at_any_byte_gives_back_what_was_acknowledged_before_and_is_no_error() {
    let directory = tempfile::tempdir().unwrap();
    let (order, ends, bytes) = written(directory.path());
    // All of the last three, and the head of the file.
    let cuts = (0..200).chain(4090..4110).chain(ends[2]..=bytes.len());
    for cut in cuts {
        let whole = ends.iter().filter(|end| **end <= cut).count();
        let wanted = numbers(&order[..whole]);
        // The file ends there; or its zeroes, or what an earlier use left, follow.
        let mut zeroed = bytes[..cut].to_vec();
        zeroed.resize(bytes.len() + 64, 0);
        let mut leftover = bytes[..cut].to_vec();
        leftover.resize(bytes.len(), 0xa5);
        let hows = [("cut", &bytes[..cut]), ("zeroed", &zeroed), ("leftover", &leftover)];
        // The first at every byte, the others at one of seven.
        for (how, torn) in hows.into_iter().take(if cut % 7 == 0 { 3 } else { 1 }) {
            let journal = reopened(directory.path(), torn);
            // Without its last bytes an entry may be whole: it is filled to a multiple of 8.
            let last = ends.get(whole).is_some_and(|end| end - cut < 8);
            let got = found(&journal);
            assert!(got == wanted || last && got == numbers(&order[..=whole]), "{how} at {cut}: {got:?}");
            assert!(
                (1..=2).all(|of| journal.damage(clone(of), 0, 0).is_none()),
                "{how} at {cut}: a torn end is no damage"
            );
        }
    }
}

#[test]
fn a_flipped_byte_in_a_journal_loses_one_batch_at_most_and_says_so_unless_it_was_the_last() {
    let directory = tempfile::tempdir().unwrap();
    let (order, ends, bytes) = written(directory.path());
    let begins: Vec<usize> = std::iter::once(4096).chain(ends.iter().copied()).collect();
    // Every byte of the records, and some of the blocks behind them.
    let in_entries =
        begins[..order.len()].iter().flat_map(|begin| (*begin..*begin + 240).chain([begin + 1000, begin + 4200]));
    for at in (0..120).chain(in_entries).chain(ends[4]..bytes.len()) {
        let mut bad = bytes.clone();
        bad[at] ^= 0x10;
        let journal = reopened(directory.path(), &bad);
        let got = found(&journal);
        let hit = begins.windows(2).position(|entry| (entry[0]..entry[1]).contains(&at));
        let mut left = order.clone();
        if let Some(hit) = hit {
            left.remove(hit);
        }
        if got.values().map(Vec::len).sum::<usize>() == order.len() {
            assert!(got == numbers(&order), "byte {at}");
            continue;
        }
        let mut wanted = numbers(&left);
        // A volume of which something is broken is looked at, whatever else there is of it.
        for (of, _) in got.iter().filter(|(_, found)| found.is_empty()) {
            wanted.entry(*of).or_default();
        }
        assert_eq!(got, wanted, "byte {at}");
        let hit = hit.expect("a byte of the head loses nothing");
        let (of, number) = order[hit];
        let told = |of: u8, mark| journal.damage(clone(of), mark, 0);
        if hit + 1 == order.len() {
            assert_eq!((told(1, 0), told(2, 0)), (None, None), "byte {at}: the last cannot be told from a torn one");
        } else {
            assert!(told(of, number - 1).is_some(), "byte {at}: batch {number} of {of} is lost without a word");
            let riddle = told(3, 0).is_some();
            assert!(riddle || told(3 - of, 0).is_none(), "byte {at}: a loss of another volume is said");
            assert!(riddle || told(of, number).is_none(), "byte {at}: what is in the store is not lost");
        }
    }
}

/// What is written behind the last batch when nothing follows it, and the file after that. With `more`, two batches of the second clone come
/// after the mark.
fn marked(directory: &Path, more: bool) -> (Vec<(u8, u64)>, Vec<usize>, Vec<u8>) {
    let journal = Journal::open(settings(directory), &Clock::simulated(1)).unwrap();
    let path = file::path_of(directory, 0);
    let end = || usize::try_from(path.metadata().unwrap().len()).unwrap();
    let (mut order, mut ends) = (vec![(1, 1), (2, 1), (1, 2)], Vec::new());
    for (of, number) in &order {
        put(&journal, *of, *number).unwrap();
        ends.push(end());
    }
    for _ in 0..2 {
        // Once is enough.
        journal.shared.files.lock().mark();
    }
    ends.push(end());
    for number in [2, 3].into_iter().filter(|_| more) {
        put(&journal, 2, number).unwrap();
        order.push((2, number));
        ends.push(end());
    }
    let bytes = std::fs::read(&path).unwrap();
    drop(journal);
    (order, ends, bytes)
}

#[test]
fn a_flipped_byte_in_the_last_batch_is_told_when_the_journal_was_idle_after_it() {
    let directory = tempfile::tempdir().unwrap();
    let (_, ends, bytes) = marked(directory.path(), false);
    let (last, mark) = (ends[1]..ends[2], ends[2]..ends[3]);
    for at in last.clone().take(300).chain(last.step_by(13)) {
        let mut bad = bytes.clone();
        bad[at] ^= 0x10;
        let journal = reopened(directory.path(), &bad);
        let got = found(&journal);
        // What fills an entry to a multiple of 8 is no part of it.
        if got.get(&1).is_some_and(|numbers| numbers[..] == [1, 2]) {
            continue;
        }
        assert_eq!((got[&1].as_slice(), got[&2].as_slice()), (&[1][..], &[1][..]), "byte {at}");
        assert!(journal.damage(clone(1), 1, 0).is_some(), "byte {at}: batch 2 is lost without a word");
        assert!(journal.damage(clone(1), 2, 0).is_none() || journal.damage(clone(3), 0, 0).is_some(), "byte {at}");
    }
    // The mark itself, flipped or torn: nobody's write.
    let flipped = mark.clone().map(|at| (at, [&bytes[..at], &[bytes[at] ^ 1], &bytes[at + 1..]].concat()));
    let torn = mark.map(|at| (at, bytes[..at].to_vec()));
    for (at, bad) in flipped.chain(torn) {
        let journal = reopened(directory.path(), &bad);
        assert_eq!(found(&journal), BTreeMap::from([(1, vec![1, 2]), (2, vec![1])]), "byte {at}");
        assert_eq!((1..=3).find_map(|of| journal.damage(clone(of), 0, 0)), None, "byte {at}");
    }
}

#[test]
fn a_damaged_mark_in_the_middle_of_a_journal_harms_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let (order, ends, bytes) = marked(directory.path(), true);
    assert_eq!(found(&reopened(directory.path(), &bytes)), numbers(&order));
    for at in ends[2]..ends[3] {
        for whole in [false, true] {
            let mut bad = bytes.clone();
            if whole {
                bad[ends[2]..ends[3]].fill(0xee)
            } else {
                bad[at] ^= 2
            }
            let journal = reopened(directory.path(), &bad);
            assert_eq!(found(&journal), numbers(&order), "byte {at}");
            assert_eq!((1..=3).find_map(|of| journal.damage(clone(of), 0, 0)), None, "byte {at}");
        }
    }
}

#[test]
fn the_last_group_of_every_file_is_followed_by_a_mark_also_when_the_journal_is_idle_or_ends() {
    let directory = tempfile::tempdir().unwrap();
    let settings = JournalSettings { inline: false, file_bytes: 64 << 10, ..settings(directory.path()) };
    let journal = Journal::open(settings, &Clock::system()).unwrap();
    let (done, told) = mpsc::channel();
    for number in 1..=40 {
        journal.submit(submission(1, number, batch(1, number), done.clone()));
        told.recv().unwrap().unwrap();
    }
    // Of each file that holds anything, whether a mark is the last in it.
    let marks = || -> Vec<bool> {
        let numbered = std::fs::read_dir(directory.path()).unwrap().flatten();
        let mut numbers: Vec<u64> = numbered.filter_map(|f| f.file_name().to_str().and_then(file::number_of)).collect();
        numbers.sort_unstable();
        let last = |n: &u64| {
            let bytes = Bytes::from(std::fs::read(file::path_of(directory.path(), *n)).unwrap());
            let (mut at, mut last) = (4096, None);
            while let Ok(entry) = decode_entry(&bytes.slice(at..)) {
                at += usize::try_from(entry.bytes).unwrap();
                last = Some(entry.record.is_mark() && entry.record.synced + MARK_BYTES == at as u64);
            }
            last
        };
        numbers.iter().filter_map(last).collect()
    };
    let files = marks();
    assert!(files.len() > 2 && files[..files.len() - 1].iter().all(|marked| *marked), "full files: {files:?}");
    let mut waited = 0;
    while marks().contains(&false) {
        assert!(waited < 600, "the journal was idle for a minute");
        waited += 1;
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    journal.submit(submission(1, 41, batch(1, 41), done));
    told.recv().unwrap().unwrap();
    drop(journal);
    assert!(!marks().contains(&false), "an orderly end, with the store out of reach");
}

#[test]
fn what_was_found_is_forgotten_when_it_is_stored_and_does_not_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let (_, _, bytes) = written(directory.path());
    let journal = reopened(directory.path(), &bytes);
    for of in [1, 2] {
        journal.forget(clone(of));
    }
    drop(journal);
    let again = Journal::open(settings(directory.path()), &Clock::simulated(3)).unwrap();
    assert!(again.pending().is_empty());
}

#[test]
fn what_an_owner_left_behind_is_given_back_in_the_same_process_and_its_numbers_may_be_given_again() {
    let directory = tempfile::tempdir().unwrap();
    for inline in [true, false] {
        let path = directory.path().join(inline.to_string());
        let settings = JournalSettings { inline, file_bytes: 64 << 10, ..settings(&path) };
        let journal = Journal::open(settings, &Clock::system()).unwrap();
        let (done, told) = mpsc::channel();
        let put = |of: u8, at: BatchAt| {
            let batch = Submission { at, ..submission(of, at.number, batch(of, at.number), done.clone()) };
            journal.submit(batch);
            told.recv().unwrap().unwrap();
        };
        let numbers = |of: u8| -> Vec<u64> {
            journal.read_pending(clone(of)).unwrap().iter().map(|entry| entry.record.number).collect()
        };
        // More than a file takes, and another clone's between them.
        for number in 1..=40 {
            put(1, at(number));
            put(2, at(number));
        }
        journal.release(clone(2), at(40));
        assert_eq!(journal.ahead(), [clone(1)]);
        assert!(journal.has_pending(clone(1)) && !journal.has_pending(clone(2)));
        assert_eq!(numbers(1), (1..=40).collect::<Vec<u64>>());
        // Given up by a life that began anew behind batch 3, and gives the same numbers again.
        let anew = |number| BatchAt { epoch: Epoch(3), number };
        journal.settle(clone(1), anew(3));
        assert!(!journal.has_pending(clone(1)));
        put(1, anew(4));
        put(1, anew(5));
        // What the old life says late is not of the new one.
        journal.release(clone(1), at(40));
        assert!(journal.has_pending(clone(1)), "what the new life has not stored counts as stored");
        assert!(numbers(1).ends_with(&[4, 5]), "{:?}", numbers(1));
        journal.release(clone(1), anew(5));
        assert!(journal.ahead().is_empty());
        assert!(numbers(1).is_empty());
    }
}

#[test]
fn a_clone_whose_store_takes_nothing_does_not_make_the_journal_grow_with_what_others_write() {
    let directory = tempfile::tempdir().unwrap();
    let settings = JournalSettings { file_bytes: 256 << 10, ..settings(directory.path()) };
    let journal = Journal::open(settings.clone(), &Clock::simulated(1)).unwrap();
    let block = |number: u64| vec![Run { start: BlockIndex(number), blocks: 1, data: Some(noted(number)) }];
    let (done, told) = mpsc::channel();
    let put = |of: u8, number: u64| {
        journal.submit(submission(of, number, block(number), done.clone()));
        told.recv().unwrap().unwrap();
    };
    let mut stuck = Vec::new();
    for number in 1..=6000 {
        put(2, number);
        journal.release(clone(2), at(number));
        if number % 50 == 0 {
            put(1, number / 50);
            stuck.push(number / 50);
        }
    }
    let files = std::fs::read_dir(directory.path()).unwrap().flatten().count();
    assert!(files < thin::FILES_MANY + 10, "{files} files for {} batches that wait", stuck.len());
    let numbers = |entries: Vec<Entry>| -> Vec<u64> {
        for entry in &entries {
            assert_eq!(entry.runs[0].data, Some(noted(entry.record.number)), "wrong bytes");
        }
        entries.iter().map(|entry| entry.record.number).collect()
    };
    // As after a kill.
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(directory.path()).unwrap().flatten() {
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let again =
        Journal::open(JournalSettings { path: copy.path().to_owned(), ..settings }, &Clock::simulated(2)).unwrap();
    assert_eq!(numbers(again.read_pending(clone(1)).unwrap()), stuck);
    assert!(again.damage(clone(1), 0, 0).is_none());
    assert_eq!(numbers(journal.read_pending(clone(1)).unwrap()), stuck);
}

/// A block that says which batch it is of.
fn noted(number: u64) -> Bytes {
    Bytes::from(number.to_le_bytes().repeat(BLOCK / 8))
}

#[test]
fn while_the_disk_is_full_nothing_is_acknowledged_out_of_order_and_no_file_is_left_behind() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(settings(directory.path()), &Clock::simulated(1)).unwrap();
    let files = || {
        let listed = std::fs::read_dir(directory.path()).unwrap().flatten();
        listed.filter(|entry| entry.file_name().to_str().and_then(file::number_of).is_some()).count()
    };
    let full = Arc::clone(&journal.settings.full);
    put(&journal, 1, 1).unwrap();
    full.store(true, Ordering::Relaxed);
    for number in 2..40 {
        let error = put(&journal, 1, number).unwrap_err();
        assert!(matches!(error.code(), "disk-full" | "journal-io"), "{error}");
    }
    assert_eq!(put(&journal, 2, 1).unwrap_err().code(), "disk-full");
    assert_eq!(files(), 1, "files that cannot be made are left behind");
    full.store(false, Ordering::Relaxed);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    // The store has batches 2 to 30: what comes now would leave a gap, and goes to the store too.
    journal.release(clone(1), at(30));
    assert_eq!(put(&journal, 1, 40).unwrap_err().code(), "journal-io");
    journal.release(clone(1), at(40));
    journal.release(clone(2), at(1));
    put(&journal, 1, 41).unwrap();
    put(&journal, 2, 2).unwrap();
    // As after a kill: the lock is that of the process.
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(directory.path()).unwrap().flatten() {
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let again = Journal::open(settings(copy.path()), &Clock::simulated(3)).unwrap();
    let got = found(&again);
    assert!(got[&1].contains(&41) && got[&2].contains(&2), "{got:?}");
    let behind: Vec<u64> = got[&1].iter().copied().filter(|number| *number > 40).collect();
    assert_eq!(behind, [41]);
}

#[test]
fn a_file_is_made_before_the_last_one_is_full_and_what_a_kill_leaves_of_one_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let settings = JournalSettings { inline: false, file_bytes: 256 << 10, ..settings(directory.path()) };
    let journal = Journal::open(settings.clone(), &Clock::system()).unwrap();
    let (done, told) = mpsc::channel();
    let mut of_files = Vec::new();
    for number in 1..=200 {
        journal.submit(submission(1, number, batch(1, number), done.clone()));
        told.recv().unwrap().unwrap();
        of_files.push(std::fs::read_dir(directory.path()).unwrap().flatten().count());
    }
    // 200 batches of some 4.4 KiB are 880 KiB: four files, and one that is ready.
    assert!((200 * 4300 / (256 << 10)..9).contains(of_files.last().unwrap()), "{of_files:?}");
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(directory.path()).unwrap().flatten() {
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    drop(journal);
    std::fs::write(file::path_of(copy.path(), 77), vec![0; 5000]).unwrap();
    let again = Journal::open(JournalSettings { path: copy.path().to_owned(), ..settings }, &Clock::system()).unwrap();
    assert_eq!(found(&again)[&1], (1..=200).collect::<Vec<u64>>());
    assert!(!file::path_of(copy.path(), 77).exists(), "the beginning of a file stays for ever");
}
