//! Versions that are kept beside the installed one: the one before, so that a rollback also works after a restart, and the one at work
//! while a refused file lies in its place, so that it is at work after a restart too.
//!
//! The files `.NAME.previous` and `.NAME.kept` are a line of JSON that says what they are, and then the component. They begin with a dot
//! and do not end with `.wasm`, so nobody takes them for plugins.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::plugin::Plugin;

/// Longest first line, bytes.
const LINE_BYTES_MAX: usize = 1024;

/// Why a version is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Role {
    /// It was replaced; a rollback brings it back.
    Previous,
    /// It is at work, and what lies in its place was refused.
    Kept,
}

impl Role {
    pub(crate) fn file(self, directory: &Path, name: &str) -> PathBuf {
        let role = match self {
            Self::Previous => "previous",
            Self::Kept => "kept",
        };
        directory.join(format!(".{name}.{role}"))
    }
}

/// A version that is kept.
#[derive(Debug, Clone)]
pub(crate) struct Previous {
    pub(crate) version: String,
    pub(crate) bytes: Arc<[u8]>,
    /// None after a restart: it is compiled when it is wanted.
    pub(crate) plugin: Option<Arc<Plugin>>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    version: String,
    /// BLAKE3 of the component, hexadecimal.
    digest: String,
}

impl Previous {
    /// What replaced plugin leaves behind.
    pub(crate) fn of(plugin: Arc<Plugin>, bytes: Arc<[u8]>) -> Self {
        Self { version: plugin.info().version.clone(), bytes, plugin: Some(plugin) }
    }

    /// The bytes of its file.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let line = Line { version: self.version.clone(), digest: blake3::hash(&self.bytes).to_hex().to_string() };
        // Two texts always make JSON.
        let mut file = serde_json::to_vec(&line).unwrap_or_default();
        file.push(b'\n');
        file.extend_from_slice(&self.bytes);
        file
    }

    /// Reads it back; none when there is none, or when it is not what was written.
    pub(crate) fn read(role: Role, directory: &Path, name: &str, component_bytes_max: usize) -> Option<Self> {
        let path = role.file(directory, name);
        let length = usize::try_from(fs::metadata(&path).ok()?.len()).ok()?;
        if length > component_bytes_max.saturating_add(LINE_BYTES_MAX) {
            return None;
        }
        let found = Self::decode(&fs::read(&path).ok()?);
        if found.is_none() {
            tracing::warn!(plugin = name, path = %path.display(), "a version that was kept is damaged, and as if it were not there");
        }
        found
    }

    fn decode(file: &[u8]) -> Option<Self> {
        let end = file.iter().take(LINE_BYTES_MAX).position(|b| *b == b'\n')?;
        let (line, rest) = file.split_at(end);
        let line: Line = serde_json::from_slice(line).ok()?;
        let bytes = rest.get(1..)?;
        let same = blake3::hash(bytes).to_hex().as_str() == line.digest;
        same.then(|| Self { version: line.version, bytes: bytes.into(), plugin: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_read_back_and_damage_is_nothing() {
        let kept = Previous { version: "1.2.3 \"x\"".into(), bytes: b"\0asm\n\n".as_slice().into(), plugin: None };
        let file = kept.encode();
        let read = Previous::decode(&file).unwrap();
        assert_eq!((read.version, read.bytes), (kept.version, kept.bytes));
        for at in 0..file.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 0x20;
            let read = Previous::decode(&damaged);
            assert!(read.is_none_or(|read| read.bytes == b"\0asm\n\n".as_slice().into()), "byte {at}");
            assert!(Previous::decode(&file[..at]).is_none(), "cut at {at}");
        }
    }
}
