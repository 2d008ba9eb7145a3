//! An inventory as it is sent: six pieces whatever it holds, with numbers in place of texts and labels.
//!
//! Each text of its own would be a call of the plugin's allocator, and a hundred bases with two labels have nine hundred.

use clonegate_core::advice;

use super::{base_state, wit};

/// An inventory as it is sent.
#[derive(Debug)]
pub(crate) struct Flat<'a> {
    revision: u64,
    datastores: Vec<wit::Datastore<'a>>,
    bases: Vec<wit::ListedBase<'a>>,
    labels: Labels<'a>,
    texts: Texts,
}

impl<'a> Flat<'a> {
    pub(crate) fn of(inventory: &'a advice::Inventory) -> Self {
        let (mut texts, mut labels) = (Texts::for_records(inventory), Labels::default());
        // First of all, so that the number of a datastore's id is the datastore's own.
        inventory.datastores.iter().for_each(|d| {
            texts.add(&d.id);
        });
        let datastores = inventory.datastores.iter().enumerate().map(|(at, d)| wit::Datastore {
            id: count(at),
            health: match d.health {
                advice::Health::Online => wit::Health::Online,
                advice::Health::Degraded => wit::Health::Degraded,
                advice::Health::Maintenance => wit::Health::Maintenance,
                advice::Health::Offline => wit::Health::Offline,
            },
            capacity: d.capacity,
            free: d.free,
            reserved: d.reserved,
            bases: d.bases,
            clones: d.clones,
            pool_clones: d.pool_clones,
            latency_us: d.latency_us,
            labels: labels.add(&d.labels, &mut texts),
        });
        let datastores = datastores.collect();
        let mut before: Option<(&advice::Base, u32, u32)> = None;
        let bases = inventory.bases.iter().map(|b| {
            let image = before.filter(|(known, ..)| known.image == b.image).map(|(_, image, _)| image);
            let datastore =
                before.filter(|(known, ..)| known.datastore == b.datastore).map(|(.., datastore)| datastore);
            // The gateway lists datastores by name. A recorded question may list them otherwise; then the text is sent again.
            let listed = || inventory.datastores.binary_search_by(|d| d.id.cmp(&b.datastore)).ok().map(count);
            let image = image.unwrap_or_else(|| texts.add(&b.image));
            let datastore = datastore.or_else(listed).unwrap_or_else(|| texts.add(&b.datastore));
            before = Some((b, image, datastore));
            wit::ListedBase {
                id: texts.add(&b.id),
                image,
                datastore,
                state: base_state(b.state),
                deltas: b.deltas,
                delta_limit: b.delta_limit,
                size: b.size,
                delta_bytes: b.delta_bytes,
                created_ms: b.created_ms,
                labels: labels.add(&b.labels, &mut texts),
            }
        });
        let bases = bases.collect();
        Self { revision: inventory.revision, datastores, bases, labels, texts }
    }

    pub(crate) fn seen(&self) -> wit::Inventory<'_> {
        wit::Inventory {
            revision: self.revision,
            datastores: &self.datastores,
            bases: &self.bases,
            labels: &self.labels.all,
            label_ends: &self.labels.ends,
            texts: &self.texts.all,
            text_ends: &self.texts.ends,
        }
    }
}

/// Texts, one behind the other.
#[derive(Debug)]
struct Texts {
    all: String,
    ends: Vec<u32>,
}

impl Texts {
    /// Empty, with about the space that an inventory needs.
    fn for_records(inventory: &advice::Inventory) -> Self {
        let records = inventory.datastores.len() + inventory.bases.len();
        Self { all: String::with_capacity(records * 64), ends: Vec::with_capacity(records * 4) }
    }

    fn add(&mut self, text: &str) -> u32 {
        let number = count(self.ends.len());
        self.all.push_str(text);
        self.ends.push(count(self.all.len()));
        number
    }
}

/// Sets of labels, one behind the other.
#[derive(Debug, Default)]
struct Labels<'a> {
    all: Vec<wit::ListedLabel>,
    ends: Vec<u32>,
    last: &'a [advice::Label],
}

impl<'a> Labels<'a> {
    /// What a record has in common with the record before it is not said again.
    fn add(&mut self, labels: &'a [advice::Label], texts: &mut Texts) -> u32 {
        let number = count(self.ends.len());
        if number > 0 && labels == self.last {
            return number - 1;
        }
        let start = self.all.len() - self.last.len();
        for (at, label) in labels.iter().enumerate() {
            let before = self.last.get(at).zip(self.all.get(start + at).copied());
            let same = |of: fn(&advice::Label) -> &str| before.filter(|(known, _)| of(known) == of(label));
            let key = same(|l| &l.key).map(|(_, sent)| sent.key);
            let value = same(|l| &l.value).map(|(_, sent)| sent.value);
            self.all.push(wit::ListedLabel {
                key: key.unwrap_or_else(|| texts.add(&label.key)),
                value: value.unwrap_or_else(|| texts.add(&label.value)),
            });
        }
        self.ends.push(count(self.all.len()));
        self.last = labels;
        number
    }
}

/// A position or a number of bytes as it is sent. A question that does not fit would not fit into the memory of a plugin by far.
fn count(of: usize) -> u32 {
    u32::try_from(of).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use advice::{Inventory, Label};

    fn label(key: &str, value: &str) -> Label {
        Label { key: key.into(), value: value.into() }
    }

    /// What a plugin reads out of it, as the package says.
    fn text<'a>(seen: &wit::Inventory<'a>, number: u32) -> &'a str {
        let at = usize::try_from(number).unwrap();
        let start = at.checked_sub(1).map_or(0, |before| seen.text_ends[before]);
        &seen.texts[usize::try_from(start).unwrap()..usize::try_from(seen.text_ends[at]).unwrap()]
    }

    fn labels(seen: &wit::Inventory<'_>, set: u32) -> Vec<Label> {
        let at = usize::try_from(set).unwrap();
        let start = at.checked_sub(1).map_or(0, |before| seen.label_ends[before]);
        let set = &seen.labels[usize::try_from(start).unwrap()..usize::try_from(seen.label_ends[at]).unwrap()];
        set.iter().map(|l| label(text(seen, l.key), text(seen, l.value))).collect()
    }

    fn read_back(inventory: &Inventory) {
        let flat = Flat::of(inventory);
        let seen = flat.seen();
        assert_eq!((seen.datastores.len(), seen.bases.len()), (inventory.datastores.len(), inventory.bases.len()));
        for (sent, d) in seen.datastores.iter().zip(&inventory.datastores) {
            assert_eq!((text(&seen, sent.id), labels(&seen, sent.labels)), (d.id.as_str(), d.labels.clone()));
        }
        for (sent, b) in seen.bases.iter().zip(&inventory.bases) {
            let texts = [sent.id, sent.image, sent.datastore].map(|number| text(&seen, number));
            assert_eq!(texts, [&*b.id, &*b.image, &*b.datastore]);
            assert_eq!(labels(&seen, sent.labels), b.labels);
            assert_eq!((sent.deltas, sent.created_ms), (b.deltas, b.created_ms));
        }
    }

    fn sample() -> Inventory {
        let question = crate::tools::Input::sample(advice::Slot::Placement, 20, 100).question;
        let advice::Question::Placement { inventory, .. } = question else { panic!("a placement") };
        inventory
    }

    #[test]
    fn every_text_and_label_is_read_back_whatever_records_share() {
        read_back(&Inventory { revision: 1, datastores: Vec::new(), bases: Vec::new() });
        read_back(&sample());
        let mut odd = sample();
        odd.datastores.reverse();
        for (n, base) in odd.bases.iter_mut().enumerate() {
            match n % 5 {
                0 => base.labels.clear(),
                1 => base.labels = vec![label("rack", "r1"), label("", ""), label("größe", "ü")],
                2 => base.labels.truncate(1),
                3 => base.datastore = "nowhere".into(),
                _ => base.id.clear(),
            }
        }
        read_back(&odd);
        odd.datastores.clear();
        read_back(&odd);
    }

    #[test]
    fn what_bases_share_with_the_one_before_or_with_a_datastore_is_sent_once() {
        let mut alike = sample();
        for base in &mut alike.bases {
            base.image = "w11:3".into();
            base.labels = vec![label("rack", "r1")];
        }
        let flat = Flat::of(&alike);
        let of_datastores = 20 + 20 * 2 + 2;
        assert!(flat.texts.ends.len() <= of_datastores + 100 + 1 + 2, "{} texts", flat.texts.ends.len());
        assert!(flat.labels.ends.len() <= 21, "{} sets", flat.labels.ends.len());
    }
}
