//! The `Content-Range` header: of a PUT, and of our answers (RFC 9110 §14.4).

use bytes::BufMut;

use super::range::parse_number;
use crate::error::{Error, Result};
use crate::units::ByteRange;

/// Where the body of a PUT belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentRange {
    /// Its bytes; not empty.
    pub range: ByteRange,
    /// The size of the volume as the client knows it; `None` for `*`.
    pub size: Option<u64>,
}

impl ContentRange {
    /// Reads `bytes FIRST-LAST/SIZE` or `bytes FIRST-LAST/*`.
    ///
    /// # Errors
    /// `Invalid` with code `content-range-malformed`.
    pub fn parse(header: &[u8]) -> Result<Self> {
        Self::read(header.trim_ascii()).ok_or_else(|| {
            Error::invalid("content-range-malformed", "Content-Range is not of the form `bytes FIRST-LAST/SIZE`")
                .hint("name the first and the last byte (both included) and the size of the disk, as in `bytes 0-511/1048576`")
        })
    }

    fn read(header: &[u8]) -> Option<Self> {
        let (unit, rest) = header.split_at_checked(6)?;
        if !unit.eq_ignore_ascii_case(b"bytes ") {
            return None;
        }
        let slash = rest.iter().position(|&byte| byte == b'/')?;
        let (span, size) = (&rest[..slash], &rest[slash + 1..]);
        let dash = span.iter().position(|&byte| byte == b'-')?;
        let (first, last) = (parse_number(&span[..dash])?, parse_number(&span[dash + 1..])?);
        let size = if size == b"*" { None } else { Some(parse_number(size)?) };
        // RFC 9110 §14.4: a last byte before the first is invalid. So is one at or after the size; who receives it says so
        // as "beyond the end", which tells more than "malformed".
        let end = last.checked_add(1)?;
        if first > last {
            return None;
        }
        Some(Self { range: ByteRange::new(first, end), size })
    }
}

/// Appends `bytes FIRST-LAST/SIZE` for a range that is not empty. At most 69 bytes.
pub fn write_content_range(out: &mut impl BufMut, range: ByteRange, size: u64) {
    debug_assert!(!range.is_empty(), "an empty range has no last byte");
    out.put_slice(b"bytes ");
    write_decimal(out, range.start());
    out.put_u8(b'-');
    write_decimal(out, range.end().saturating_sub(1));
    out.put_u8(b'/');
    write_decimal(out, size);
}

/// Appends a number in decimal. At most 20 bytes.
pub fn write_decimal(out: &mut impl BufMut, mut value: u64) {
    let mut digits = [0u8; 20];
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b"0123456789"[usize::from((value % 10) as u8)];
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.put_slice(&digits[first..]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(header: &str, expect: Option<(u64, u64, Option<u64>)>) {
        let got = ContentRange::parse(header.as_bytes()).ok();
        let got = got.map(|found| (found.range.start(), found.range.end(), found.size));
        assert_eq!(got, expect, "{header:?}");
    }

    #[test]
    fn a_put_says_where_it_belongs() {
        check("bytes 0-511/1048576", Some((0, 512, Some(1_048_576))));
        check("bytes 512-512/*", Some((512, 513, None)));
        check("Bytes 0-0/1", Some((0, 1, Some(1))));
        check("bytes 0-1024/1024", Some((0, 1025, Some(1024))));
        check("bytes 9223372036854775296-9223372036854775807/9223372036854775808", {
            Some(((1 << 63) - 512, 1 << 63, Some(1 << 63)))
        });
    }

    #[test]
    fn anything_else_is_malformed() {
        for header in [
            "",
            "bytes",
            "bytes 0-511",
            "bytes=0-511/1024",
            "bytes 0-/1024",
            "bytes -511/1024",
            "bytes */1024",
            "bytes 5-4/1024",
            "bytes 0-1/x",
            "bytes 0-1/",
            "bytes 0 -1/4",
            "items 0-1/4",
            "bytes 0-18446744073709551615/*",
            "bytes 0-1/2/3",
            "bytes 0-1, 4-5/10",
        ] {
            check(header, None);
        }
    }

    proptest! {
        #[test]
        fn what_we_write_we_read(start in 0u64..u64::MAX / 2, length in 1u64..u64::MAX / 2, more in 0u64..1000) {
            let range = ByteRange::new(start, start + length);
            let mut text = Vec::new();
            write_content_range(&mut text, range, range.end().saturating_add(more));
            let read = ContentRange::parse(&text).unwrap();
            prop_assert_eq!(read, ContentRange { range, size: Some(range.end().saturating_add(more)) });
        }

        #[test]
        fn decimals_are_those_of_the_standard_library(value in any::<u64>()) {
            let mut text = Vec::new();
            write_decimal(&mut text, value);
            prop_assert_eq!(String::from_utf8(text).unwrap(), value.to_string());
        }
    }
}
