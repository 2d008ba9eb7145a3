//! Names of many clones from one pattern.

use clonegate_core::ids::Name;
use clonegate_core::limits::CREATE_COUNT_MAX;
use clonegate_core::{Error, Result};

/// Digits that a stem gets at least: `desk` makes `desk-001`.
const DIGITS_MIN: usize = 3;

/// `count` names from `first` on: `desk-{nnn}` puts the number in the braces, padded to as many digits as there are letters; a
/// text without braces is a stem, and gets `-` and the number behind it. Without a count it is the name itself.
///
/// # Errors
/// `Invalid` with codes `bad-count`, `bad-pattern` or `bad-name`.
pub(super) fn expand(text: &str, count: Option<u32>, first: Option<u32>) -> Result<Vec<Name>> {
    let Some(count) = count else { return Ok(vec![Name::new(text)?]) };
    if count == 0 || count > CREATE_COUNT_MAX {
        return Err(Error::invalid("bad-count", format!("a count of {count}"))
            .hint(format!("one request makes 1 to {CREATE_COUNT_MAX} clones")));
    }
    let first = first.unwrap_or(1);
    let last = first.checked_add(count - 1).ok_or_else(|| {
        Error::invalid("bad-count", format!("{count} numbers from {first} pass the end of all numbers"))
    })?;
    let pattern = Pattern::parse(text, last)?;
    (first..=last).map(|number| Name::new(pattern.name(number))).collect()
}

/// A pattern with one place for a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    before: String,
    digits: usize,
    after: String,
}

impl Pattern {
    /// Reads a pattern, or makes one of a stem whose numbers go up to `last`.
    pub(super) fn parse(text: &str, last: u32) -> Result<Self> {
        let wrong = |why: &str| {
            Error::invalid("bad-pattern", format!("{text:?} is no pattern for names: {why}"))
                .hint("write a stem like desk, or one place for the number like desk-{nnn}")
        };
        let Some((before, rest)) = text.split_once('{') else {
            if text.contains('}') {
                return Err(wrong("a brace is not opened"));
            }
            let digits = last.to_string().len().max(DIGITS_MIN);
            return Ok(Self { before: format!("{text}-"), digits, after: String::new() });
        };
        let (letters, after) = rest.split_once('}').ok_or_else(|| wrong("a brace is not closed"))?;
        if letters.is_empty() || letters.len() > 9 || letters.bytes().any(|b| b != b'n') {
            return Err(wrong("between the braces are one to nine n"));
        }
        if after.contains(['{', '}']) {
            return Err(wrong("it has more than one place for a number"));
        }
        Ok(Self { before: before.to_owned(), digits: letters.len(), after: after.to_owned() })
    }

    /// Whether the two make the same name with some number, told by what stands around it.
    pub(super) fn meets(&self, other: &Self) -> bool {
        self.before == other.before && self.after == other.after
    }

    /// The name with this number.
    pub(super) fn name(&self, number: u32) -> String {
        format!("{}{number:0digits$}{}", self.before, self.after, digits = self.digits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, count: Option<u32>, first: Option<u32>, expect: &[&str]) {
        let names: Vec<String> = expand(text, count, first).unwrap().iter().map(Name::to_string).collect();
        assert_eq!(names, expect);
    }

    #[test]
    fn patterns_make_the_names_that_people_expect() {
        check("desk", None, None, &["desk"]);
        check("desk", Some(2), None, &["desk-001", "desk-002"]);
        check("desk-{nn}", Some(2), Some(9), &["desk-09", "desk-10"]);
        check("{n}.lab", Some(2), None, &["1.lab", "2.lab"]);
        check("d", Some(1), Some(1000), &["d-1000"]);
        assert_eq!(expand("d", Some(1000), None).unwrap()[0].as_str(), "d-0001");
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for (text, count, code) in [
            ("desk", 0, "bad-count"),
            ("desk", CREATE_COUNT_MAX + 1, "bad-count"),
            ("desk-{nn", 1, "bad-pattern"),
            ("desk-}", 1, "bad-pattern"),
            ("desk-{x}", 1, "bad-pattern"),
            ("{n}{n}", 1, "bad-pattern"),
            ("Desk-{n}", 1, "bad-name"),
        ] {
            assert_eq!(expand(text, Some(count), None).unwrap_err().code(), code, "{text}");
        }
    }
}
