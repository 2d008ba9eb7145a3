//! Preconditions of a request against the validators of a volume, in the order of RFC 9110 §13.2.2.

use smallvec::SmallVec;

/// The values of one list-valued field, one entry per line of the request.
pub type Lines<'a> = SmallVec<[&'a [u8]; 1]>;

/// What identifies the present bytes of a volume.
#[derive(Debug, Clone, Copy)]
pub struct Validators<'a> {
    /// The strong entity tag, with its quotes.
    pub etag: &'a [u8],
    /// When the bytes last changed, seconds since 1970 UTC. `None` while that second is not over: another change could
    /// follow in it, and a date must never name two states.
    pub modified_s: Option<u64>,
}

/// The conditional fields of a request. Dates are seconds since 1970 UTC; a date that cannot be read is absent, as the
/// RFC says.
#[derive(Debug, Clone, Default)]
pub struct Conditions<'a> {
    /// `If-Match`.
    pub if_match: Lines<'a>,
    /// `If-None-Match`.
    pub if_none_match: Lines<'a>,
    /// `If-Modified-Since`.
    pub if_modified_since: Option<u64>,
    /// `If-Unmodified-Since`.
    pub if_unmodified_since: Option<u64>,
}

/// What the preconditions make of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Do it.
    Proceed,
    /// Answer 304.
    NotModified,
    /// Answer 412.
    Failed,
}

impl Conditions<'_> {
    /// Whether the request has none.
    pub fn is_empty(&self) -> bool {
        self.if_match.is_empty()
            && self.if_none_match.is_empty()
            && self.if_modified_since.is_none()
            && self.if_unmodified_since.is_none()
    }

    /// Judges a request for something that exists; `reading` says that its method is GET or HEAD.
    pub fn judge(&self, now: Validators<'_>, reading: bool) -> Verdict {
        if !self.if_match.is_empty() {
            if !names(&self.if_match, now.etag, Comparison::Strong) {
                return Verdict::Failed;
            }
        } else if let Some(since) = self.if_unmodified_since
            // A change in a second that is not over is later than any date that we have given out.
            && now.modified_s.is_none_or(|modified| modified > since)
        {
            return Verdict::Failed;
        }
        if !self.if_none_match.is_empty() {
            if names(&self.if_none_match, now.etag, Comparison::Weak) {
                return if reading { Verdict::NotModified } else { Verdict::Failed };
            }
        } else if let Some(since) = self.if_modified_since
            && reading
            && now.modified_s.is_some_and(|modified| modified <= since)
        {
            return Verdict::NotModified;
        }
        Verdict::Proceed
    }
}

/// Whether `If-Range` permits the range: the client's part is of the present bytes. `date` is the value read as a date,
/// when it is one.
pub fn if_range_holds(value: &[u8], date: Option<u64>, now: Validators<'_>) -> bool {
    let value = value.trim_ascii();
    if value.starts_with(b"\"") {
        return value == now.etag;
    }
    // A weak tag never holds. A date must be exactly ours.
    date.is_some() && date == now.modified_s
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Strong,
    Weak,
}

/// Whether a list of entity tags, or `*`, names `etag`. What follows a malformed tag is not looked at: it names nothing.
fn names(lines: &[&[u8]], etag: &[u8], comparison: Comparison) -> bool {
    lines.iter().any(|line| line_names(line, etag, comparison))
}

fn line_names(line: &[u8], etag: &[u8], comparison: Comparison) -> bool {
    if line.trim_ascii() == b"*" {
        return true;
    }
    let mut rest = line;
    loop {
        while let [b' ' | b'\t' | b',', after @ ..] = rest {
            rest = after;
        }
        let (weak, tag) = match rest {
            [b'W', b'/', tag @ ..] => (true, tag),
            tag => (false, tag),
        };
        let [b'"', inner @ ..] = tag else { return false };
        let Some(end) = inner.iter().position(|&byte| byte == b'"') else { return false };
        if &tag[..end + 2] == etag && (!weak || comparison == Comparison::Weak) {
            return true;
        }
        rest = &inner[end + 1..];
    }
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;

    use super::*;

    const NOW: Validators<'static> = Validators { etag: b"\"1-5\"", modified_s: Some(1000) };

    fn conditions(fields: &[(&str, &'static str)]) -> Conditions<'static> {
        let mut conditions = Conditions::default();
        for (name, value) in fields {
            match *name {
                "if-match" => conditions.if_match.push(value.as_bytes()),
                "if-none-match" => conditions.if_none_match.push(value.as_bytes()),
                "if-modified-since" => conditions.if_modified_since = value.parse().ok(),
                "if-unmodified-since" => conditions.if_unmodified_since = value.parse().ok(),
                other => panic!("{other}"),
            }
        }
        conditions
    }

    #[track_caller]
    fn check(fields: &[(&str, &'static str)], get: Verdict, put: Verdict) {
        let conditions = conditions(fields);
        assert_eq!(conditions.judge(NOW, true), get, "GET {fields:?}");
        assert_eq!(conditions.judge(NOW, false), put, "PUT {fields:?}");
    }

    #[test]
    fn each_precondition_alone() {
        use Verdict::{Failed, NotModified, Proceed};
        check(&[], Proceed, Proceed);
        for (value, verdict) in [
            ("\"1-5\"", Proceed),
            ("*", Proceed),
            (" * ", Proceed),
            ("\"0\", \"1-5\"", Proceed),
            ("\"0\",,\t\"1-5\" ,", Proceed),
            ("\"a,b\", \"1-5\"", Proceed),
            ("\"1-4\"", Failed),
            ("W/\"1-5\"", Failed),
            ("1-5", Failed),
            ("\"1-5", Failed),
            ("x, \"1-5\"", Failed),
            ("", Failed),
        ] {
            check(&[("if-match", value)], verdict, verdict);
        }
        for value in ["\"1-5\"", "W/\"1-5\"", "*", "\"0\", W/\"1-5\""] {
            check(&[("if-none-match", value)], NotModified, Failed);
        }
        for value in ["\"1-4\"", "", "x"] {
            check(&[("if-none-match", value)], Proceed, Proceed);
        }
        check(&[("if-modified-since", "1000")], NotModified, Proceed);
        check(&[("if-modified-since", "999")], Proceed, Proceed);
        check(&[("if-unmodified-since", "1000")], Proceed, Proceed);
        check(&[("if-unmodified-since", "999")], Failed, Failed);
    }

    #[test]
    fn a_tag_outranks_a_date_and_match_comes_before_none_match() {
        use Verdict::{Failed, NotModified, Proceed};
        check(&[("if-match", "\"1-5\""), ("if-unmodified-since", "1")], Proceed, Proceed);
        check(&[("if-none-match", "\"0\""), ("if-modified-since", "2000")], Proceed, Proceed);
        check(&[("if-match", "\"0\""), ("if-none-match", "\"1-5\"")], Failed, Failed);
        check(&[("if-match", "\"1-5\""), ("if-none-match", "\"1-5\"")], NotModified, Failed);
        check(&[("if-unmodified-since", "999"), ("if-none-match", "\"1-5\"")], Failed, Failed);
        check(&[("if-unmodified-since", "1000"), ("if-modified-since", "1000")], NotModified, Proceed);
    }

    #[test]
    fn lists_may_span_several_lines() {
        let two = Conditions { if_match: smallvec![&b"\"0\""[..], &b"\"1-5\""[..]], ..Conditions::default() };
        assert_eq!(two.judge(NOW, true), Verdict::Proceed);
    }

    #[test]
    fn a_second_that_is_not_over_matches_no_date() {
        let now = Validators { modified_s: None, ..NOW };
        assert_eq!(conditions(&[("if-modified-since", "9999")]).judge(now, true), Verdict::Proceed);
        assert_eq!(conditions(&[("if-unmodified-since", "9999")]).judge(now, true), Verdict::Failed);
        assert!(!if_range_holds(b"x", Some(1000), now));
    }

    #[test]
    fn if_range_takes_our_strong_tag_or_exactly_our_date() {
        for (value, date, expect) in [
            ("\"1-5\"", None, true),
            (" \"1-5\" ", None, true),
            ("\"1-4\"", None, false),
            ("W/\"1-5\"", None, false),
            ("*", None, false),
            ("", None, false),
            ("a date", Some(1000), true),
            ("a date", Some(1001), false),
            ("a date", Some(999), false),
        ] {
            assert_eq!(if_range_holds(value.as_bytes(), date, NOW), expect, "{value}");
        }
    }
}
