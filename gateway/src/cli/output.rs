//! What commands print: a table for people or JSON for programs.

use std::io::Write;

use bytesize::ByteSize;
use serde::Serialize;

/// The form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// Columns for people.
    Table,
    /// JSON for programs.
    Json,
}

/// Writes a line to standard output. A closed pipe (`… | head`) is no error.
pub(super) fn line(text: &str) {
    drop(writeln!(std::io::stdout().lock(), "{text}"));
}

/// Writes a line about what goes on to standard error, so that standard output stays what was asked for.
pub(super) fn aside(text: &str) {
    drop(writeln!(std::io::stderr().lock(), "{text}"));
}

/// Prints JSON.
pub(super) fn json(value: &impl Serialize) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => line(&text),
        Err(error) => tracing::error!(%error, "the answer does not encode"),
    }
}

/// Prints rows in columns, as wide as their widest cell.
pub(super) fn table(headers: &[&str], rows: &[Vec<String>]) {
    let width_of = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(headers.get(column).map(|h| h.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headers.len()).map(width_of).collect();
    let show = |cells: Vec<&str>| {
        let mut text = String::new();
        for (cell, width) in cells.into_iter().zip(&widths) {
            let padding = width.saturating_sub(cell.chars().count()) + 2;
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', padding));
        }
        line(text.trim_end());
    };
    show(headers.to_vec());
    for row in rows {
        show(row.iter().map(String::as_str).collect());
    }
}

/// Prints `name: value` lines.
pub(super) fn facts(facts: &[(&str, String)]) {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in facts {
        line(format!("{name:width$}  {value}").trim_end());
    }
}

/// A size for people.
pub(super) fn size(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}

/// A time for people, UTC.
pub(super) fn time(ms: u64) -> String {
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(ms);
    humantime::format_rfc3339_seconds(at).to_string()
}

/// `-` for nothing.
pub(super) fn or_dash(value: Option<String>) -> String {
    value.unwrap_or_else(|| "-".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_read_well() {
        assert_eq!(size(5 << 30), "5.0 GiB");
        assert_eq!(time(0), "1970-01-01T00:00:00Z");
    }
}
