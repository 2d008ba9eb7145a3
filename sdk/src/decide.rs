//! The three traits, and the words a policy decides with.

use crate::settings::Settings;
use crate::types::{
    Base, BaseState, Candidate, Context, Datastore, ErrorKind, Failure, Health, Inventory, Label, PlacementRequest,
    PlacementVerdict, ResetRequest, ResetVerdict, RolloverRequest, RolloverVerdict, Target, Volume,
};

/// A verdict, or that none could be reached (which counts against the plugin; to say no, there are verdicts).
pub type Decision<V> = Result<V, Failure>;

/// Decides where clones go.
pub trait Placement: Settings {
    /// Where does this clone go? The host takes the first candidate that holds, or asks once more with
    /// [`PlacementRequest::rejected`] filled.
    ///
    /// # Errors
    /// When no verdict could be reached; see [`cannot_decide`].
    fn place(&self, context: &Context, ask: &PlacementRequest, inventory: &Inventory) -> Decision<PlacementVerdict>;
}

/// Decides when a base gets a successor.
pub trait Rollover: Settings {
    /// Does this base need a successor?
    ///
    /// # Errors
    /// When no verdict could be reached; see [`cannot_decide`].
    fn roll_over(&self, context: &Context, ask: &RolloverRequest, inventory: &Inventory) -> Decision<RolloverVerdict>;
}

/// Decides when clones are reset.
pub trait Reset: Settings {
    /// Is this clone reset?
    ///
    /// # Errors
    /// When no verdict could be reached; see [`cannot_decide`].
    fn reset(&self, context: &Context, ask: &ResetRequest) -> Decision<ResetVerdict>;
}

/// Candidates in this order, best first. More than the host takes (8) are left away; none is no opinion.
pub fn choose(candidates: impl IntoIterator<Item = Candidate>) -> PlacementVerdict {
    let candidates: Vec<_> = candidates.into_iter().take(8).collect();
    if candidates.is_empty() { PlacementVerdict::NoOpinion } else { PlacementVerdict::Choose(candidates) }
}

/// Nothing is permitted; the text reaches whoever ordered the clone.
pub fn refuse(why: impl Into<String>) -> PlacementVerdict {
    PlacementVerdict::Refuse(why.into())
}

/// That no verdict could be reached: the next plugin is asked, and it counts against this one.
///
/// # Errors
/// Always: it is one.
pub fn cannot_decide<V>(message: impl Into<String>) -> Decision<V> {
    Err(Failure { kind: ErrorKind::Internal, message: message.into() })
}

impl Base {
    /// Links the clone to this base.
    pub fn because(&self, reason: impl Into<String>) -> Candidate {
        Candidate { target: Target::Base(self.id.to_string()), reason: reason.into() }
    }

    /// Slots that are free.
    pub fn room(&self) -> u32 {
        self.delta_limit.saturating_sub(self.deltas)
    }

    /// The value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        label(&self.labels, key)
    }
}

impl Datastore {
    /// Makes a new base here for the clone.
    pub fn because(&self, reason: impl Into<String>) -> Candidate {
        Candidate { target: Target::NewBaseOn(self.id.to_string()), reason: reason.into() }
    }

    /// Bytes neither taken nor promised.
    pub fn headroom(&self) -> u64 {
        self.free.saturating_sub(self.reserved)
    }

    /// Online, with headroom for the expected delta.
    pub fn takes(&self, ask: &PlacementRequest) -> bool {
        self.health == Health::Online && self.headroom() >= ask.expected_delta
    }

    /// The value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        label(&self.labels, key)
    }
}

impl Inventory {
    /// The datastore of this name.
    pub fn datastore(&self, id: &str) -> Option<&Datastore> {
        self.datastores.get(self.position(id)?)
    }

    /// Where the datastore of this name stands in the list.
    pub fn position(&self, id: &str) -> Option<usize> {
        // In a gateway's question a base mostly points to the very text of its datastore; then nothing needs to be compared.
        let here = self.datastores.iter().position(|d| std::ptr::eq::<str>(&*d.id, id));
        here.or_else(|| self.datastores.iter().position(|d| d.id == id))
    }

    /// Datastores that take the clone and were not rejected for a new base.
    pub fn roomy_datastores<'a>(&'a self, ask: &'a PlacementRequest) -> impl Iterator<Item = &'a Datastore> {
        self.datastores.iter().filter(|d| {
            d.takes(ask) && !ask.rejected.iter().any(|r| matches!(&r.target, Target::NewBaseOn(id) if *id == d.id))
        })
    }

    /// Ready bases of the image with a free slot, on a datastore that takes the clone, and not rejected.
    pub fn ready_bases<'a>(&'a self, ask: &'a PlacementRequest) -> impl Iterator<Item = &'a Base> {
        // Sorted once: there may be many more bases than datastores.
        let mut places: Vec<&str> = self.datastores.iter().filter(|d| d.takes(ask)).map(|d| &*d.id).collect();
        places.sort_unstable();
        // The very text comes first, as in `position`.
        let takes = move |id: &str| {
            places.iter().any(|place| std::ptr::eq::<str>(*place, id)) || places.binary_search(&id).is_ok()
        };
        self.bases.iter().filter(move |b| {
            b.state == BaseState::Ready
                && b.room() > 0
                && b.image == ask.image
                && takes(&b.datastore)
                && !ask.rejected.iter().any(|r| matches!(&r.target, Target::Base(id) if *id == b.id))
        })
    }
}

impl PlacementRequest {
    /// The value of a label of the clone, else of its pool, else of its template.
    pub fn label(&self, key: &str) -> Option<&str> {
        label(&self.labels, key)
    }
}

impl Volume {
    /// The value of a label of the clone, else of its pool, else of its template.
    pub fn label(&self, key: &str) -> Option<&str> {
        label(&self.labels, key)
    }
}

fn label<'a>(labels: &'a [Label], key: &str) -> Option<&'a str> {
    labels.iter().find(|l| l.key == key).map(|l| &*l.value)
}
