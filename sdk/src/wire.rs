//! Questions as they are sent: an inventory comes in six pieces, with numbers in place of texts and labels.
//!
//! A question over a hundred bases would be a thousand texts, each written into the plugin's memory by a call of its allocator.
//! Policies see none of this: they get [`types`], whose texts point into the one that was sent.

#![allow(missing_docs, reason = "field by field as in wit/types.wit")]

use std::borrow::Cow;

use crate::types;
pub use crate::types::*;

#[derive(Debug)]
pub struct Label {
    pub key: String,
    pub value: String,
}

#[derive(Debug)]
pub struct ListedLabel {
    pub key: u32,
    pub value: u32,
}

#[derive(Debug)]
pub struct Datastore {
    pub id: u32,
    pub health: Health,
    pub capacity: u64,
    pub free: u64,
    pub reserved: u64,
    pub bases: u32,
    pub clones: u32,
    pub pool_clones: u32,
    pub latency_us: Option<u32>,
    pub labels: u32,
}

/// A base on its own.
#[derive(Debug)]
pub struct Base {
    pub id: String,
    pub image: String,
    pub datastore: String,
    pub state: BaseState,
    pub deltas: u32,
    pub delta_limit: u32,
    pub size: u64,
    pub delta_bytes: u64,
    pub created_ms: u64,
    pub labels: Vec<Label>,
}

/// A base of an inventory.
#[derive(Debug)]
pub struct ListedBase {
    pub id: u32,
    pub image: u32,
    pub datastore: u32,
    pub state: BaseState,
    pub deltas: u32,
    pub delta_limit: u32,
    pub size: u64,
    pub delta_bytes: u64,
    pub created_ms: u64,
    pub labels: u32,
}

#[derive(Debug)]
pub struct Inventory {
    pub revision: u64,
    pub datastores: Vec<Datastore>,
    pub bases: Vec<ListedBase>,
    pub labels: Vec<ListedLabel>,
    pub label_ends: Vec<u32>,
    pub texts: String,
    pub text_ends: Vec<u32>,
}

#[derive(Debug)]
pub struct PlacementRequest {
    pub clone: String,
    pub pool: String,
    pub image: String,
    pub size: u64,
    pub lifetime: Lifetime,
    pub expected_delta: u64,
    pub count: u32,
    pub labels: Vec<Label>,
    pub rejected: Vec<Rejection>,
}

#[derive(Debug)]
pub struct RolloverRequest {
    pub trigger: RolloverTrigger,
    pub subject: Base,
    pub pending: u32,
    pub superseded: bool,
}

#[derive(Debug)]
pub struct Volume {
    pub id: String,
    pub pool: String,
    pub lifetime: Lifetime,
    pub created_ms: u64,
    pub last_reset_ms: Option<u64>,
    pub last_exit: Exit,
    pub attached: bool,
    pub held: bool,
    pub delta: u64,
    pub size: u64,
    pub newer: Option<Release>,
    pub labels: Vec<Label>,
}

#[derive(Debug)]
pub struct ResetRequest {
    pub event: ResetEvent,
    pub subject: Volume,
    pub base: Base,
}

fn own(labels: Vec<Label>) -> Vec<types::Label> {
    labels.into_iter().map(|l| types::Label { key: l.key.into(), value: l.value.into() }).collect()
}

impl From<Base> for types::Base {
    fn from(b: Base) -> Self {
        Self {
            id: b.id.into(),
            image: b.image.into(),
            datastore: b.datastore.into(),
            state: b.state,
            deltas: b.deltas,
            delta_limit: b.delta_limit,
            size: b.size,
            delta_bytes: b.delta_bytes,
            created_ms: b.created_ms,
            labels: own(b.labels).into(),
        }
    }
}

/// What stands from one end to the next; nothing where the numbers make no sense.
fn pieces<'a, T: ?Sized>(ends: &'a [u32], piece: impl Fn(usize, usize) -> Option<&'static T> + 'a) -> Vec<&'static T>
where
    &'static T: Default,
{
    let mut start = 0;
    let each = ends.iter().map(|end| {
        let end = *end as usize;
        piece(std::mem::replace(&mut start, end), end).unwrap_or_default()
    });
    each.collect()
}

impl From<Inventory> for types::Inventory {
    /// What is shared is never given back: the instance is thrown away after its one answer.
    fn from(sent: Inventory) -> Self {
        let all: &'static str = sent.texts.leak();
        let texts = pieces(&sent.text_ends, |start, end| all.get(start..end));
        let text = |number: u32| Cow::Borrowed(texts.get(number as usize).copied().unwrap_or_default());
        let labels = sent.labels.iter().map(|l| types::Label { key: text(l.key), value: text(l.value) });
        let labels: &'static [types::Label] = labels.collect::<Vec<_>>().leak();
        let sets = pieces(&sent.label_ends, |start, end| labels.get(start..end));
        let set = |number: u32| Cow::Borrowed(sets.get(number as usize).copied().unwrap_or_default());
        let datastores = sent.datastores.into_iter().map(|d| types::Datastore {
            id: text(d.id),
            health: d.health,
            capacity: d.capacity,
            free: d.free,
            reserved: d.reserved,
            bases: d.bases,
            clones: d.clones,
            pool_clones: d.pool_clones,
            latency_us: d.latency_us,
            labels: set(d.labels),
        });
        let bases = sent.bases.into_iter().map(|b| types::Base {
            id: text(b.id),
            image: text(b.image),
            datastore: text(b.datastore),
            state: b.state,
            deltas: b.deltas,
            delta_limit: b.delta_limit,
            size: b.size,
            delta_bytes: b.delta_bytes,
            created_ms: b.created_ms,
            labels: set(b.labels),
        });
        Self { revision: sent.revision, datastores: datastores.collect(), bases: bases.collect() }
    }
}

impl From<PlacementRequest> for types::PlacementRequest {
    fn from(sent: PlacementRequest) -> Self {
        Self {
            clone: sent.clone,
            pool: sent.pool,
            image: sent.image,
            size: sent.size,
            lifetime: sent.lifetime,
            expected_delta: sent.expected_delta,
            count: sent.count,
            labels: own(sent.labels),
            rejected: sent.rejected,
        }
    }
}

impl From<RolloverRequest> for types::RolloverRequest {
    fn from(sent: RolloverRequest) -> Self {
        let RolloverRequest { trigger, subject, pending, superseded } = sent;
        Self { trigger, subject: subject.into(), pending, superseded }
    }
}

impl From<Volume> for types::Volume {
    fn from(sent: Volume) -> Self {
        Self {
            id: sent.id,
            pool: sent.pool,
            lifetime: sent.lifetime,
            created_ms: sent.created_ms,
            last_reset_ms: sent.last_reset_ms,
            last_exit: sent.last_exit,
            attached: sent.attached,
            held: sent.held,
            delta: sent.delta,
            size: sent.size,
            newer: sent.newer,
            labels: own(sent.labels),
        }
    }
}

impl From<ResetRequest> for types::ResetRequest {
    fn from(sent: ResetRequest) -> Self {
        Self { event: sent.event, subject: sent.subject.into(), base: sent.base.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(id: u32, image: u32, datastore: u32, labels: u32) -> ListedBase {
        ListedBase {
            id,
            image,
            datastore,
            state: BaseState::Ready,
            deltas: 1,
            delta_limit: 128,
            size: 2,
            delta_bytes: 3,
            created_ms: 4,
            labels,
        }
    }

    fn seen(bases: Vec<ListedBase>, text_ends: Vec<u32>, label_ends: Vec<u32>) -> types::Inventory {
        types::Inventory::from(Inventory {
            revision: 1,
            datastores: Vec::new(),
            bases,
            labels: vec![ListedLabel { key: 3, value: 4 }, ListedLabel { key: 4, value: 9 }],
            label_ends,
            texts: "b1d1w11:1rackäé".into(),
            text_ends,
        })
    }

    #[test]
    fn texts_and_labels_are_found_by_their_numbers() {
        let there_is = seen(vec![base(0, 2, 1, 1), base(0, 2, 1, 0)], vec![2, 4, 9, 13, 17], vec![0, 1, 2]);
        let [first, second] = &there_is.bases[..] else { panic!("two bases") };
        assert_eq!((&*first.id, &*first.image, &*first.datastore), ("b1", "w11:1", "d1"));
        assert_eq!(first.labels.iter().map(|l| (&*l.key, &*l.value)).collect::<Vec<_>>(), [("rack", "äé")]);
        assert_eq!(first.label("rack"), Some("äé"));
        assert!(second.labels.is_empty());
    }

    #[test]
    fn what_is_not_there_is_empty_and_ends_the_plugin_no_more_than_other_texts() {
        // Past the end, backwards, and inside a letter.
        let there_is = seen(vec![base(0, 1, 2, 0), base(9, 3, 4, 2)], vec![2, 99, 4, 14, 17], vec![9, 1, 2]);
        assert_eq!(there_is.bases[0].id, "b1");
        assert_eq!((&*there_is.bases[0].image, there_is.bases[0].labels.len()), ("", 0));
        assert_eq!((&*there_is.bases[1].id, &*there_is.bases[1].image), ("", ""));
        assert_eq!(there_is.bases[1].labels[0].value, "");
    }
}
