//! The `Range` header: which bytes of a volume a request asks for (RFC 9110 §14.1 and §14.2).

use smallvec::SmallVec;

use crate::limits::HTTP_RANGES_MAX;
use crate::units::ByteRange;

/// Ranges in the order in which they were asked for.
pub type RangeList = SmallVec<[ByteRange; 2]>;

/// What a `Range` header selects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// The header is to be ignored: another unit, or malformed. Answer 200 with everything.
    Whole,
    /// One range, not empty and within the volume. Answer 206.
    One(ByteRange),
    /// Two to [`HTTP_RANGES_MAX`] ranges, each not empty and within the volume. Answer 206, multipart.
    Many(RangeList),
    /// Answer 416.
    Refused(Refusal),
}

/// Why a `Range` header is answered 416.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No range begins within the volume.
    Unsatisfiable,
    /// More than [`HTTP_RANGES_MAX`] ranges.
    TooMany,
    /// More than one pair of ranges overlaps: nobody but an attacker asks for the same bytes again and again
    /// (CVE-2011-3192; RFC 9110 §14.2 permits the refusal of more than two overlapping ranges).
    Overlapping,
}

/// One well-formed `range-spec`. Numbers past 64 bits are 2^64 − 1: no volume is that large.
#[derive(Debug, Clone, Copy)]
enum Spec {
    /// First and last byte, both included.
    Between(u64, u64),
    /// That many bytes at the end.
    Last(u64),
}

impl Spec {
    fn within(self, size: u64) -> Option<ByteRange> {
        let range = match self {
            Self::Between(first, last) => ByteRange::new(first, last.saturating_add(1).min(size)),
            Self::Last(length) => ByteRange::new(size.saturating_sub(length), size),
        };
        (!range.is_empty()).then_some(range)
    }
}

/// What `header`, the value of the only `Range` field of a request, selects of a volume of `size` bytes.
///
/// A malformed header is ignored as a whole, even when some of its ranges make sense; a range beyond the end is dropped as
/// long as another one is left. Nothing is allocated for one range.
pub fn select(header: &[u8], size: u64) -> Selection {
    let Some(set) = after_unit(header.trim_ascii()) else { return Selection::Whole };
    let mut found = RangeList::new();
    let mut given = 0usize;
    for element in set.split(|&byte| byte == b',') {
        let element = trim_blanks(element);
        if element.is_empty() {
            continue;
        }
        let Some(spec) = parse_spec(element) else { return Selection::Whole };
        given += 1;
        // Beyond the bound only the syntax of the rest matters.
        if given <= HTTP_RANGES_MAX
            && let Some(range) = spec.within(size)
        {
            found.push(range);
        }
    }
    match (given, found.as_slice()) {
        (0, _) => Selection::Whole,
        (given, _) if given > HTTP_RANGES_MAX => Selection::Refused(Refusal::TooMany),
        (_, []) => Selection::Refused(Refusal::Unsatisfiable),
        (_, [one]) => Selection::One(*one),
        (_, many) if overlapping_pairs(many) > 1 => Selection::Refused(Refusal::Overlapping),
        _ => Selection::Many(found),
    }
}

fn after_unit(header: &[u8]) -> Option<&[u8]> {
    let (unit, set) = header.split_at_checked(6)?;
    unit.eq_ignore_ascii_case(b"bytes=").then_some(set)
}

fn trim_blanks(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = text {
        text = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

fn parse_spec(text: &[u8]) -> Option<Spec> {
    let dash = text.iter().position(|&byte| byte == b'-')?;
    let (first, last) = (&text[..dash], &text[dash + 1..]);
    match (first.is_empty(), last.is_empty()) {
        (true, true) => None,
        (true, false) => Some(Spec::Last(parse_number(last)?)),
        (false, true) => Some(Spec::Between(parse_number(first)?, u64::MAX)),
        (false, false) => {
            let (first, last) = (parse_number(first)?, parse_number(last)?);
            (first <= last).then_some(Spec::Between(first, last))
        }
    }
}

/// One or more digits and nothing else; saturates.
pub(super) fn parse_number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    let mut value = 0u64;
    for &digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        value = value.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
    }
    Some(value)
}

fn overlapping_pairs(ranges: &[ByteRange]) -> usize {
    let mut pairs = 0;
    for (position, one) in ranges.iter().enumerate() {
        pairs += ranges[position + 1..].iter().filter(|other| !one.intersect(**other).is_empty()).count();
    }
    pairs
}

#[cfg(test)]
mod tests {
    use http_range_header::{RangeUnsatisfiableError, parse_range_header};
    use proptest::prelude::*;

    use super::*;

    fn one(start: u64, end: u64) -> Selection {
        Selection::One(ByteRange::new(start, end))
    }

    fn many(ranges: &[(u64, u64)]) -> Selection {
        Selection::Many(ranges.iter().map(|&(start, end)| ByteRange::new(start, end)).collect())
    }

    #[track_caller]
    fn check(header: &str, size: u64, expect: Selection) {
        assert_eq!(select(header.as_bytes(), size), expect, "{header:?} of {size}");
    }

    #[test]
    fn one_range_is_cut_at_the_end_of_the_volume() {
        check("bytes=0-0", 1000, one(0, 1));
        check("bytes=0-511", 1000, one(0, 512));
        check("bytes=990-2000", 1000, one(990, 1000));
        check("bytes=999-", 1000, one(999, 1000));
        check("bytes=0-", 1000, one(0, 1000));
        check("bytes=-1", 1000, one(999, 1000));
        check("bytes=-5000", 1000, one(0, 1000));
        check("BYTES=1-2", 1000, one(1, 3));
        check("bytes=00001-0002", 1000, one(1, 3));
        check("  bytes=1-2\t", 1000, one(1, 3));
        check("bytes= ,, 1-2 ,", 1000, one(1, 3));
    }

    #[test]
    fn numbers_beyond_32_and_64_bits_are_numbers() {
        let huge = 1 << 63;
        check("bytes=4294967296-4294967807", huge, one(1 << 32, (1 << 32) + 512));
        check("bytes=9223372036854775296-", huge, one(huge - 512, huge));
        check("bytes=0-99999999999999999999999999", 1000, one(0, 1000));
        check("bytes=-99999999999999999999999999", 1000, one(0, 1000));
        check("bytes=99999999999999999999999999-", 1000, Selection::Refused(Refusal::Unsatisfiable));
        check("bytes=18446744073709551615-18446744073709551615", u64::MAX, Selection::Refused(Refusal::Unsatisfiable));
        check("bytes=18446744073709551614-", u64::MAX, one(u64::MAX - 1, u64::MAX));
    }

    #[test]
    fn what_is_beyond_the_end_is_refused_unless_another_range_is_left() {
        for header in ["bytes=1000-", "bytes=1000-1000", "bytes=-0", "bytes=2000-3000,1000-", "bytes=-0, -00"] {
            check(header, 1000, Selection::Refused(Refusal::Unsatisfiable));
        }
        check("bytes=5000-, 1-2", 1000, one(1, 3));
        check("bytes=0-", 0, Selection::Refused(Refusal::Unsatisfiable));
        check("bytes=-5", 0, Selection::Refused(Refusal::Unsatisfiable));
    }

    #[test]
    fn several_ranges_keep_their_order() {
        check("bytes=0-1,5-6", 1000, many(&[(0, 2), (5, 7)]));
        check("bytes=500-, -100 ,\t0-0", 1000, many(&[(500, 1000), (900, 1000), (0, 1)]));
        check("bytes=0-9,5-14", 1000, many(&[(0, 10), (5, 15)]));
    }

    #[test]
    fn abuse_is_refused() {
        check("bytes=0-,0-,0-", 1000, Selection::Refused(Refusal::Overlapping));
        let sixteen: Vec<String> = (0..16).map(|n| format!("{}-{}", n * 10, n * 10 + 1)).collect();
        assert!(matches!(
            select(format!("bytes={}", sixteen.join(",")).as_bytes(), 1000),
            Selection::Many(ranges) if ranges.len() == 16
        ));
        let header = format!("bytes={},999-", sixteen.join(","));
        check(&header, 1000, Selection::Refused(Refusal::TooMany));
        check(&format!("{header},x"), 1000, Selection::Whole);
        check(&format!("bytes=1-1{}", ",".repeat(10_000)), 1000, one(1, 2));
    }

    #[test]
    fn what_is_malformed_is_ignored() {
        for header in [
            "",
            "bytes",
            "bytes=",
            "bytes=,",
            "bytes=-",
            "bytes=a-b",
            "bytes=1",
            "bytes=2-1",
            "bytes=1-2-3",
            "bytes=--1",
            "bytes=+1-2",
            "bytes=1 -2",
            "bytes=1- 2",
            "bytes=0-1;5-6",
            "bytes 0-1",
            "bytes =0-1",
            "items=0-1",
            "bytes=0x1-2",
            "bytes=0-1,5-4",
            "bytes=0-1,x",
            "bytes=\u{ff11}-2",
            "byte\u{0}=0-1",
        ] {
            check(header, 1000, Selection::Whole);
        }
    }

    /// What the independent parser makes of it, with the differences that are ours on purpose:
    /// * it allows 100 ranges, we 16: the generator stays below;
    /// * it refuses numbers of over 30 digits and a blank at the very end: the generator makes none;
    /// * a volume of no bytes has no satisfiable range here; there a suffix selects it all: sizes begin at 1.
    fn oracle(header: &str, size: u64) -> Selection {
        let ranges = match parse_range_header(header) {
            Err(_) => return Selection::Whole,
            Ok(parsed) => match parsed.validate(size) {
                Err(RangeUnsatisfiableError::Unsatisfiable) => return Selection::Refused(Refusal::Unsatisfiable),
                Err(_) => return Selection::Refused(Refusal::Overlapping),
                Ok(ranges) => ranges,
            },
        };
        let ranges: RangeList = ranges.iter().map(|range| ByteRange::new(*range.start(), range.end() + 1)).collect();
        match ranges.as_slice() {
            [one] => Selection::One(*one),
            _ => Selection::Many(ranges),
        }
    }

    fn spec() -> impl Strategy<Value = String> {
        let number = prop_oneof![0u64..40, 0u64..5000, any::<u64>()];
        prop_oneof![
            4 => (number.clone(), number.clone()).prop_map(|(a, b)| format!("{a}-{b}")),
            4 => (number.clone(), 0u64..4096).prop_map(|(a, b)| format!("{a}-{}", a.saturating_add(b))),
            2 => number.clone().prop_map(|a| format!("{a}-")),
            2 => number.prop_map(|a| format!("-{a}")),
            1 => "[0-9a-z+ -]{0,6}",
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn it_agrees_with_an_independent_parser(
            specs in prop::collection::vec(spec(), 1..12),
            separator in prop_oneof![Just(","), Just(", "), Just(" ,\t")],
            size in prop_oneof![1u64..6000, Just(1 << 33), Just(1 << 63)],
        ) {
            let header = format!("bytes={}", specs.join(separator));
            let header = header.trim_end();
            let (ours, theirs) = (select(header.as_bytes(), size), oracle(header, size));
            // Its overlap rule counts differently; ours is checked on its own above.
            let overlap = Selection::Refused(Refusal::Overlapping);
            if ours != overlap && theirs != overlap {
                prop_assert_eq!(ours, theirs, "{:?} of {}", header, size);
            }
        }

        #[test]
        fn no_header_selects_what_is_not_there(header in prop::collection::vec(any::<u8>(), 0..80), size in any::<u64>()) {
            for prefix in [&b""[..], b"bytes="] {
                let header = [prefix, &header].concat();
                let ranges = match select(&header, size) {
                    Selection::One(one) => RangeList::from_slice(&[one]),
                    Selection::Many(many) => many,
                    _ => continue,
                };
                prop_assert!(ranges.len() <= HTTP_RANGES_MAX);
                for range in ranges {
                    prop_assert!(!range.is_empty() && range.end() <= size);
                }
            }
        }
    }
}
