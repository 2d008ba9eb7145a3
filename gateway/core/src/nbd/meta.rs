//! Metadata contexts: what `BLOCK_STATUS` can tell, and how its answers look on the wire.

use super::{Malformed, Reader, Style};

/// A metadata context of this server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Context {
    /// `base:allocation` of the specification.
    Allocation,
    /// `clonegate:source`: where the bytes come from.
    Source,
}

/// `base:allocation`: nothing is stored there.
pub const STATE_HOLE: u32 = 1 << 0;
/// `base:allocation`: it reads as zeroes.
pub const STATE_ZERO: u32 = 1 << 1;
/// `clonegate:source`: the clone wrote it. Neither bit: zero, stored nowhere.
pub const SOURCE_DELTA: u32 = 1 << 0;
/// `clonegate:source`: it comes from the base.
pub const SOURCE_BASE: u32 = 1 << 1;

impl Context {
    /// All contexts, in the order of their ids.
    pub const ALL: [Self; 2] = [Self::Allocation, Self::Source];

    /// The id in replies.
    pub const fn id(self) -> u32 {
        match self {
            Self::Allocation => 1,
            Self::Source => 2,
        }
    }

    /// The context with this id.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|context| context.id() == id)
    }

    /// The name in options.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allocation => "base:allocation",
            Self::Source => "clonegate:source",
        }
    }

    /// The contexts that a query of `LIST_META_CONTEXT` means: a full name, or a namespace with its colon.
    pub fn listed_by(query: &str) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |context| {
            context.name() == query || (query.ends_with(':') && context.name().starts_with(query))
        })
    }
}

/// A set of contexts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Contexts {
    /// `base:allocation` is in it.
    pub allocation: bool,
    /// `clonegate:source` is in it.
    pub source: bool,
}

impl Contexts {
    /// Adds one.
    pub fn insert(&mut self, context: Context) {
        match context {
            Context::Allocation => self.allocation = true,
            Context::Source => self.source = true,
        }
    }

    /// Whether `context` is in it.
    pub const fn contains(self, context: Context) -> bool {
        match context {
            Context::Allocation => self.allocation,
            Context::Source => self.source,
        }
    }

    /// Whether it is empty.
    pub const fn is_empty(self) -> bool {
        !self.allocation && !self.source
    }

    /// The contexts in it.
    pub fn iter(self) -> impl Iterator<Item = Context> {
        Context::ALL.into_iter().filter(move |context| self.contains(*context))
    }

    /// Reads the payload of a `BLOCK_STATUS` that chooses among the contexts of this set: the length that it asks
    /// about, and the contexts. `None` when it is malformed, names an unknown one, or one twice.
    pub fn choose(self, payload: &[u8]) -> Option<(u64, Self)> {
        let mut reader = Reader(payload);
        let length = reader.u64()?;
        let mut chosen = Self::default();
        while !reader.is_empty() {
            let context = Context::from_id(reader.u32()?)?;
            if !self.contains(context) || chosen.contains(context) {
                return None;
            }
            chosen.insert(context);
        }
        Some((length, chosen))
    }
}

/// The largest payload of a `BLOCK_STATUS` request that can be right.
pub const STATUS_PAYLOAD_BYTES_MAX: u64 = 8 + 4 * Context::ALL.len() as u64;

/// One run of bytes with one status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Bytes.
    pub length: u64,
    /// Flags of the context.
    pub status: u32,
}

/// Joins neighbours with the same status, keeps at most `count` runs.
pub fn merge(runs: impl IntoIterator<Item = Run>, count: usize) -> Vec<Run> {
    let mut merged: Vec<Run> = Vec::new();
    for run in runs.into_iter().filter(|run| run.length > 0) {
        if let Some(last) = merged.last_mut().filter(|last| last.status == run.status) {
            last.length = last.length.saturating_add(run.length);
        } else if merged.len() == count {
            break;
        } else {
            merged.push(run);
        }
    }
    merged
}

/// Appends the payload of a status chunk. With compact headers a run that does not fit 32 bits is cut, and ends the list.
pub fn encode_status(style: Style, context: u32, runs: &[Run], out: &mut Vec<u8>) {
    out.extend_from_slice(&context.to_be_bytes());
    if style == Style::Extended {
        out.extend_from_slice(&u32::try_from(runs.len()).unwrap_or(u32::MAX).to_be_bytes());
    }
    for run in runs {
        if style == Style::Extended {
            out.extend_from_slice(&run.length.to_be_bytes());
            out.extend_from_slice(&u64::from(run.status).to_be_bytes());
            continue;
        }
        // A cut run stays a multiple of every block size that clients use.
        let length = u32::try_from(run.length).unwrap_or(!0xffff);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&run.status.to_be_bytes());
        if u64::from(length) != run.length {
            break;
        }
    }
}

/// Reads the payload of a status chunk: the context's id and the runs.
///
/// # Errors
/// When the payload is not a whole number of runs, or has none.
pub fn decode_status(extended: bool, payload: &[u8]) -> Result<(u32, Vec<Run>), Malformed> {
    const WRONG: Malformed = Malformed("a status chunk is malformed");
    let mut reader = Reader(payload);
    let context = reader.u32().ok_or(WRONG)?;
    let mut runs = Vec::new();
    if extended {
        let count = reader.u32().ok_or(WRONG)?;
        while !reader.is_empty() {
            let length = reader.u64().ok_or(WRONG)?;
            let status = u32::try_from(reader.u64().ok_or(WRONG)?).map_err(|_| WRONG)?;
            runs.push(Run { length, status });
        }
        if count != 0 && count as usize != runs.len() {
            return Err(WRONG);
        }
    } else {
        while !reader.is_empty() {
            let length = u64::from(reader.u32().ok_or(WRONG)?);
            runs.push(Run { length, status: reader.u32().ok_or(WRONG)? });
        }
    }
    if runs.is_empty() { Err(WRONG) } else { Ok((context, runs)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn queries_find_names_and_namespaces() {
        let names = |query: &str| Context::listed_by(query).map(Context::name).collect::<Vec<_>>();
        assert_eq!(names("base:"), ["base:allocation"]);
        assert_eq!(names("base:allocation"), ["base:allocation"]);
        assert_eq!(names("clonegate:"), ["clonegate:source"]);
        assert!(names("base:allocationx").is_empty());
        assert!(names("qemu:dirty-bitmap:x").is_empty());
    }

    #[test]
    fn a_choice_is_of_contexts_that_were_negotiated_each_once() {
        let both = Contexts { allocation: true, source: true };
        let payload = |length: u64, ids: &[u32]| {
            let mut out = length.to_be_bytes().to_vec();
            ids.iter().for_each(|id| out.extend_from_slice(&id.to_be_bytes()));
            out
        };
        assert_eq!(both.choose(&payload(7, &[2])), Some((7, Contexts { allocation: false, source: true })));
        assert_eq!(both.choose(&payload(7, &[2, 1])), Some((7, both)));
        assert_eq!(both.choose(&payload(7, &[])), Some((7, Contexts::default())));
        for wrong in [payload(7, &[1, 1]), payload(7, &[3]), vec![0; 7], vec![0; 9], vec![]] {
            assert_eq!(both.choose(&wrong), None);
        }
        assert_eq!(Contexts { allocation: true, source: false }.choose(&payload(7, &[2])), None);
    }

    #[test]
    fn runs_longer_than_32_bits_are_cut_with_compact_headers_only() {
        let runs = [Run { length: 5 << 32, status: 3 }, Run { length: 1, status: 0 }];
        let mut out = Vec::new();
        encode_status(Style::Structured, 1, &runs, &mut out);
        let (_, cut) = decode_status(false, &out).unwrap();
        assert_eq!(cut, [Run { length: 0xffff_0000, status: 3 }]);
        out.clear();
        encode_status(Style::Extended, 1, &runs, &mut out);
        assert_eq!(decode_status(true, &out).unwrap(), (1, runs.to_vec()));
    }

    proptest! {
        #[test]
        fn merging_keeps_the_length_and_joins_equal_neighbours(
            runs in proptest::collection::vec((1u64..1000, 0u32..3), 1..50)
        ) {
            let runs: Vec<Run> = runs.into_iter().map(|(length, status)| Run { length, status }).collect();
            let merged = merge(runs.clone(), usize::MAX);
            let total = |runs: &[Run]| runs.iter().map(|run| run.length).sum::<u64>();
            prop_assert_eq!(total(&runs), total(&merged));
            prop_assert!(merged.windows(2).all(|pair| pair[0].status != pair[1].status));
            prop_assert!(merge(runs, 1).len() == 1);
        }

        #[test]
        fn any_bytes_are_a_status_or_are_refused(extended: bool, data in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Ok((context, runs)) = decode_status(extended, &data) {
                let mut out = Vec::new();
                encode_status(if extended { Style::Extended } else { Style::Structured }, context, &runs, &mut out);
                prop_assert_eq!(out.len(), data.len());
            }
        }
    }
}
