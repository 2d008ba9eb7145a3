//! The project's files as the structure tests read them.

use std::fs;
use std::path::{Path, PathBuf};

/// The root of the project.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).expect("tests/ is in the project's root")
}

/// A text file of the project.
#[derive(Debug, Clone)]
pub struct Source {
    /// From the root, with `/`.
    pub path: String,
    /// Its text.
    pub text: String,
}

impl Source {
    /// Whether it is test code as a whole.
    pub fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.ends_with("_tests.rs") || self.path.contains("/tests/")
    }

    /// The text without comments and without the test modules at its end: what ships.
    pub fn code(&self) -> String {
        let shipped = self.text.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default();
        let mut code = String::with_capacity(shipped.len());
        for line in shipped.lines() {
            let end = line.find("//").filter(|&at| !line[..at].ends_with(':')).unwrap_or(line.len());
            code.push_str(&line[..end]);
            code.push('\n');
        }
        code
    }

    /// Lines before the test modules at its end.
    pub fn shipped_lines(&self) -> usize {
        self.text.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default().lines().count()
    }
}

/// Directories that are not ours or are made.
const SKIPPED: &[&str] = &["target", ".git", "clonegate-data", "node_modules"];

/// Every file of the project whose name ends with one of `endings`, in order.
pub fn files(endings: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    walk(&root(), &mut |path| {
        let name = path.strip_prefix(root()).unwrap_or(path).to_string_lossy().replace('\\', "/");
        if endings.iter().any(|ending| name.ends_with(ending))
            && let Ok(text) = fs::read_to_string(path)
        {
            found.push(Source { path: name, text });
        }
    });
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Every Rust file.
pub fn rust() -> Vec<Source> {
    files(&[".rs"])
}

/// The text of one file.
///
/// # Panics
/// When it is not there.
pub fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn walk(dir: &Path, visit: &mut impl FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let name = entry.file_name();
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            if !SKIPPED.iter().any(|skipped| name == *skipped) {
                walk(&path, visit);
            }
        } else if kind.is_file() {
            visit(&path);
        }
    }
}
