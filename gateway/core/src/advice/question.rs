//! The three kinds of question and answer taken together, as chains, records and replay handle them.

use serde::{Deserialize, Serialize};

use super::{
    Inventory, PlacementRequest, PlacementVerdict, ResetRequest, ResetVerdict, RolloverRequest, RolloverVerdict,
    builtin,
};

/// A kind of question, and with it a place where plugins can be bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Slot {
    /// Where a clone goes.
    Placement,
    /// Whether a base needs a successor.
    Rollover,
    /// Whether a clone is reset.
    Reset,
}

impl Slot {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Placement, Self::Rollover, Self::Reset];

    /// Its word in configuration, in records and in WIT.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Placement => "placement",
            Self::Rollover => "rollover",
            Self::Reset => "reset",
        }
    }

    /// The slot of this word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|slot| slot.name() == word)
    }
}

impl std::fmt::Display for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A question to a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "slot", rename_all = "kebab-case")]
pub enum Question {
    /// Where a clone goes.
    Placement {
        /// What is asked.
        request: PlacementRequest,
        /// What there is.
        inventory: Inventory,
    },
    /// Whether a base needs a successor.
    Rollover {
        /// What is asked.
        request: RolloverRequest,
        /// What there is.
        inventory: Inventory,
    },
    /// Whether a clone is reset.
    Reset {
        /// What is asked.
        request: ResetRequest,
    },
}

impl Question {
    /// Its kind.
    pub const fn slot(&self) -> Slot {
        match self {
            Self::Placement { .. } => Slot::Placement,
            Self::Rollover { .. } => Slot::Rollover,
            Self::Reset { .. } => Slot::Reset,
        }
    }

    /// The pool that it is about; empty: none.
    pub fn pool(&self) -> &str {
        match self {
            Self::Placement { request, .. } => &request.pool,
            Self::Rollover { .. } => "",
            Self::Reset { request } => &request.subject.pool,
        }
    }

    /// The object that it is about: a clone's name or a base's id.
    pub fn subject(&self) -> &str {
        match self {
            Self::Placement { request, .. } => &request.clone,
            Self::Rollover { request, .. } => &request.subject.id,
            Self::Reset { request } => &request.subject.id,
        }
    }

    /// Records in it (datastores, bases, labels, rejections): what the budget of a call grows with.
    pub fn records(&self) -> usize {
        let inventory = |i: &Inventory| {
            i.datastores.iter().map(|d| 1 + d.labels.len()).sum::<usize>()
                + i.bases.iter().map(|b| 1 + b.labels.len()).sum::<usize>()
        };
        match self {
            Self::Placement { request, inventory: i } => {
                1 + request.labels.len() + request.rejected.len() + inventory(i)
            }
            Self::Rollover { request, inventory: i } => 1 + request.subject.labels.len() + inventory(i),
            Self::Reset { request } => 2 + request.subject.labels.len() + request.base.labels.len(),
        }
    }

    /// What the built-in rule answers.
    pub fn builtin(&self) -> Answer {
        match self {
            Self::Placement { request, inventory } => Answer::Placement(builtin::place(request, inventory)),
            Self::Rollover { request, .. } => Answer::Rollover(builtin::roll_over(request)),
            Self::Reset { request } => Answer::Reset(builtin::reset(request)),
        }
    }
}

/// An answer of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// Where a clone goes.
    Placement(PlacementVerdict),
    /// Whether a base needs a successor.
    Rollover(RolloverVerdict),
    /// Whether a clone is reset.
    Reset(ResetVerdict),
}

impl Answer {
    /// True when the next in the chain is to be asked.
    pub const fn is_no_opinion(&self) -> bool {
        matches!(
            self,
            Self::Placement(PlacementVerdict::NoOpinion)
                | Self::Rollover(RolloverVerdict::NoOpinion)
                | Self::Reset(ResetVerdict::NoOpinion)
        )
    }

    /// Its verdict in one word, for tables and metrics.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Placement(v) => match v {
                PlacementVerdict::NoOpinion => "no-opinion",
                PlacementVerdict::Choose(_) => "choose",
                PlacementVerdict::Refuse(_) => "refuse",
                PlacementVerdict::Defer(_) => "defer",
            },
            Self::Rollover(v) => match v {
                RolloverVerdict::NoOpinion => "no-opinion",
                RolloverVerdict::Keep => "keep",
                RolloverVerdict::Seal(_) => "seal",
                RolloverVerdict::Prepare(_) => "prepare",
                RolloverVerdict::RollOver(_) => "roll-over",
                RolloverVerdict::Retire(_) => "retire",
            },
            Self::Reset(v) => match v {
                ResetVerdict::NoOpinion => "no-opinion",
                ResetVerdict::Keep => "keep",
                ResetVerdict::Discard(_) => "discard",
                ResetVerdict::Hold(_) => "hold",
                ResetVerdict::AskAgain(_) => "ask-again",
            },
        }
    }
}
