//! What a journal held when its gateway stopped.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use clonegate_core::format::envelope;
use clonegate_core::format::journal::{ENTRIES_AT, ENTRY_ALIGN, Entry, JournalSegmentRecord, decode_entry};
use clonegate_core::ids::{CloneId, Nonce};
use clonegate_core::{Error, Result};

use super::file::{number_of, path_of};
use super::io_error;

/// Where an entry lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct EntryRef {
    pub(super) file: u64,
    offset: u64,
    bytes: u64,
    number: u64,
}

/// A file that was there at start.
#[derive(Debug)]
pub(super) struct FoundFile {
    pub(super) file: File,
    pub(super) clones: Vec<CloneId>,
}

/// What [`scan`] found.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    pub(super) files: BTreeMap<u64, FoundFile>,
    pub(super) entries: HashMap<CloneId, Vec<EntryRef>>,
}

/// Reads all files of a journal.
///
/// # Errors
/// `Corrupt` with code `journal-damaged` when an entry that was synced does not decode.
pub(super) fn scan(directory: &Path, journal: Nonce) -> Result<Recovered> {
    let mut recovered = Recovered::default();
    let listed = std::fs::read_dir(directory).map_err(|e| io_error(directory, e))?;
    for entry in listed {
        let entry = entry.map_err(|e| io_error(directory, e))?;
        let Some(n) = entry.file_name().to_str().and_then(number_of) else { continue };
        let path = path_of(directory, n);
        let opened = File::options().read(true).write(true).open(&path).map_err(|e| io_error(&path, e))?;
        let bytes = Bytes::from(std::fs::read(&path).map_err(|e| io_error(&path, e))?);
        let head = bytes.get(..usize::try_from(ENTRIES_AT).unwrap_or(4096).min(bytes.len())).unwrap_or_default();
        let mut found = FoundFile { file: opened, clones: Vec::new() };
        // A file whose head was never finished holds nothing that was synced.
        if let Ok(head) = envelope::decode_with::<JournalSegmentRecord>(head)
            && head.record.journal == journal
            && head.record.generation > 0
        {
            read_entries(&bytes, n, head.record.generation, &mut recovered.entries, &mut found)
                .map_err(|e| e.on(path.display().to_string()))?;
        }
        recovered.files.insert(n, found);
    }
    for entries in recovered.entries.values_mut() {
        entries.sort_by_key(|entry| entry.number);
    }
    Ok(recovered)
}

fn read_entries(
    bytes: &Bytes,
    n: u64,
    generation: u64,
    entries: &mut HashMap<CloneId, Vec<EntryRef>>,
    found: &mut FoundFile,
) -> Result<()> {
    let mut at = ENTRIES_AT;
    let mut broken = None;
    while at < bytes.len() as u64 {
        let rest = bytes.slice(usize::try_from(at).unwrap_or(usize::MAX)..);
        match decode_entry(&rest) {
            Ok(entry) if entry.record.generation == generation => {
                if let Some(broken) = broken.filter(|b| *b < entry.record.synced) {
                    return Err(Error::corrupt(
                        "journal-damaged",
                        format!("the entry at {broken} was synced and does not decode"),
                    )
                    .hint(
                        "flushed writes may be missing: see `clonegate fsck`; move the journal away to go on without",
                    ));
                }
                if broken.is_none() {
                    let record = &entry.record;
                    let place = EntryRef { file: n, offset: at, bytes: entry.bytes, number: record.number };
                    entries.entry(record.clone).or_default().push(place);
                    if !found.clones.contains(&record.clone) {
                        found.clones.push(record.clone);
                    }
                }
                at += entry.bytes;
            }
            _ => {
                // The end, unless something behind it says that this place was synced.
                broken.get_or_insert(at);
                at = match next_magic(bytes, at + ENTRY_ALIGN) {
                    Some(next) => next,
                    None => return Ok(()),
                };
            }
        }
    }
    Ok(())
}

fn next_magic(bytes: &Bytes, from: u64) -> Option<u64> {
    let from = usize::try_from(from).ok()?;
    let rest = bytes.get(from..)?;
    let (words, _) = rest.as_chunks::<8>();
    words.iter().position(|word| *word == envelope::MAGIC).map(|index| (from + index * 8) as u64)
}

/// Reads entries back.
pub(super) fn read(directory: &Path, refs: &[EntryRef]) -> Result<Vec<Entry>> {
    let mut entries = Vec::with_capacity(refs.len());
    let mut open: Option<(u64, File)> = None;
    for place in refs {
        let path = path_of(directory, place.file);
        let file = match open.take() {
            Some((n, file)) if n == place.file => file,
            _ => File::open(&path).map_err(|e| io_error(&path, e))?,
        };
        let mut bytes = vec![0; usize::try_from(place.bytes).unwrap_or(0)];
        file.read_exact_at(&mut bytes, place.offset).map_err(|e| io_error(&path, e))?;
        entries.push(decode_entry(&Bytes::from(bytes)).map_err(|e| e.on(path.display().to_string()))?);
        open = Some((place.file, file));
    }
    Ok(entries)
}
