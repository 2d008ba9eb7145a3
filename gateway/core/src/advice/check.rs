//! What every answer must satisfy, whoever gave it: the invariants are never in a plugin's hands.
//!
//! [`validate`] looks at the form (a wrong form counts as a failure of the plugin); [`usable`] says whether one place of a
//! placement holds against an inventory (one that does not is skipped); [`settle_reset`] makes a reset safe.

use super::{
    Answer, BaseState, Datastore, Health, Inventory, Lifetime, PlacementRequest, PlacementVerdict, Question,
    ResetRequest, ResetTiming, ResetVerdict, RolloverVerdict, Target,
};
use crate::error::{Error, Result};

/// Most candidates, and most datastores for a successor, in an answer.
pub const CANDIDATES_MAX: usize = 8;
/// Longest text in an answer, bytes.
pub const TEXT_BYTES_MAX: usize = 512;
/// Longest wait that an answer may ask for, seconds (30 days).
pub const WAIT_SECONDS_MAX: u32 = 30 * 24 * 3600;

/// Checks the form of an answer: right kind, at least 1 and at most [`CANDIDATES_MAX`] candidates, known ids, texts of at most
/// [`TEXT_BYTES_MAX`] bytes without NUL, waits of 1 to [`WAIT_SECONDS_MAX`] seconds.
///
/// # Errors
/// `bad-answer` (invalid) that says what is wrong.
pub fn validate(question: &Question, answer: &Answer) -> Result<()> {
    match (question, answer) {
        (Question::Placement { inventory, .. }, Answer::Placement(verdict)) => validate_placement(inventory, verdict),
        (Question::Rollover { inventory, .. }, Answer::Rollover(verdict)) => validate_rollover(inventory, verdict),
        (Question::Reset { .. }, Answer::Reset(verdict)) => validate_reset(verdict),
        (question, _) => Err(bad(format!("a question of {} was answered by another kind", question.slot()))),
    }
}

/// [`validate`] for placement.
///
/// # Errors
/// `bad-answer` (invalid) that says what is wrong.
pub fn validate_placement(inventory: &Inventory, verdict: &PlacementVerdict) -> Result<()> {
    match verdict {
        PlacementVerdict::NoOpinion => Ok(()),
        PlacementVerdict::Refuse(why) => text("the refusal", why),
        PlacementVerdict::Defer(deferral) => {
            text("the deferral", &deferral.reason)?;
            wait(deferral.seconds)
        }
        PlacementVerdict::Choose(candidates) => {
            if candidates.is_empty() {
                return Err(bad("it chose no candidate"));
            }
            count("candidates", candidates.len())?;
            for candidate in candidates {
                text("a reason", &candidate.reason)?;
                let (what, id, known) = match &candidate.target {
                    Target::Base(id) => ("base", id, inventory.bases.iter().any(|b| &b.id == id)),
                    Target::NewBaseOn(id) => ("datastore", id, inventory.datastores.iter().any(|d| &d.id == id)),
                };
                if !known {
                    return Err(bad(format!("it chose the {what} {}, which there is not", shown(id))));
                }
            }
            Ok(())
        }
    }
}

/// [`validate`] for rollover.
///
/// # Errors
/// `bad-answer` (invalid) that says what is wrong.
pub fn validate_rollover(inventory: &Inventory, verdict: &RolloverVerdict) -> Result<()> {
    match verdict {
        RolloverVerdict::NoOpinion | RolloverVerdict::Keep => Ok(()),
        RolloverVerdict::Seal(why) | RolloverVerdict::Retire(why) => text("a reason", why),
        RolloverVerdict::Prepare(successor) | RolloverVerdict::RollOver(successor) => {
            text("a reason", &successor.reason)?;
            count("datastores", successor.datastores.len())?;
            match successor.datastores.iter().find(|id| !inventory.datastores.iter().any(|d| &d.id == *id)) {
                Some(id) => Err(bad(format!("it chose the datastore {}, which there is not", shown(id)))),
                None => Ok(()),
            }
        }
    }
}

/// [`validate`] for reset.
///
/// # Errors
/// `bad-answer` (invalid) that says what is wrong.
pub fn validate_reset(verdict: &ResetVerdict) -> Result<()> {
    match verdict {
        ResetVerdict::NoOpinion | ResetVerdict::Keep => Ok(()),
        ResetVerdict::Discard(plan) => text("a reason", &plan.reason),
        ResetVerdict::Hold(hold) => {
            text("a reason", &hold.reason)?;
            hold.seconds.map_or(Ok(()), wait)
        }
        ResetVerdict::AskAgain(seconds) => wait(*seconds),
    }
}

/// Says why a target cannot be used now, or nothing when it can.
///
/// # Errors
/// A sentence for people and for [`super::Rejection`].
pub fn usable(request: &PlacementRequest, inventory: &Inventory, target: &Target) -> std::result::Result<(), String> {
    let on = |id: &str| inventory.datastores.iter().find(|d| d.id == id);
    let datastore = match target {
        Target::NewBaseOn(id) => on(id).ok_or("there is no such datastore")?,
        Target::Base(id) => {
            let base = inventory.bases.iter().find(|b| &b.id == id).ok_or("there is no such base")?;
            if base.image != request.image {
                return Err(format!("it holds {}, not {}", base.image, request.image));
            }
            if base.state != BaseState::Ready {
                return Err("it is not ready".into());
            }
            if base.deltas >= base.delta_limit {
                return Err(format!("all of its {} slots are taken", base.delta_limit));
            }
            on(&base.datastore).ok_or("its datastore is not there")?
        }
    };
    if datastore.health != Health::Online {
        return Err(format!("the datastore {} is not online", datastore.id));
    }
    let room = headroom(datastore);
    if room < request.expected_delta {
        return Err(format!(
            "the datastore {} has {room} bytes of headroom, {} are needed",
            datastore.id, request.expected_delta
        ));
    }
    Ok(())
}

/// Bytes that are neither taken nor promised.
pub fn headroom(datastore: &Datastore) -> u64 {
    datastore.free.saturating_sub(datastore.reserved)
}

/// Makes a reset verdict safe: nothing is discarded under an open clone or while it is held, and a persistent clone only when
/// `allow_persistent` is set. Returns what was changed, for the record.
pub fn settle_reset(
    request: &ResetRequest,
    verdict: ResetVerdict,
    allow_persistent: bool,
) -> (ResetVerdict, Option<&'static str>) {
    let ResetVerdict::Discard(mut plan) = verdict else { return (verdict, None) };
    if request.subject.held {
        return (ResetVerdict::Keep, Some("the clone is held"));
    }
    if request.subject.lifetime == Lifetime::Persistent && !allow_persistent {
        return (
            ResetVerdict::Keep,
            Some("a persistent clone is reset by policy only if the gateway's configuration says so"),
        );
    }
    if request.subject.attached && plan.timing == ResetTiming::Now {
        plan.timing = ResetTiming::WhenDetached;
        return (ResetVerdict::Discard(plan), Some("somebody has the clone open"));
    }
    (ResetVerdict::Discard(plan), None)
}

fn bad(message: impl Into<String>) -> Error {
    Error::invalid("bad-answer", message)
}

fn shown(id: &str) -> String {
    let mut text: String = id.chars().take(64).flat_map(char::escape_debug).collect();
    if id.chars().nth(64).is_some() {
        text.push('…');
    }
    text
}

fn text(what: &str, text: &str) -> Result<()> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(bad(format!("{what} has {} bytes, at most {TEXT_BYTES_MAX} are taken", text.len())));
    }
    if text.contains('\0') {
        return Err(bad(format!("{what} contains a NUL")));
    }
    Ok(())
}

fn count(what: &str, n: usize) -> Result<()> {
    if n > CANDIDATES_MAX { Err(bad(format!("{n} {what}, at most {CANDIDATES_MAX} are taken"))) } else { Ok(()) }
}

fn wait(seconds: u32) -> Result<()> {
    if seconds == 0 || seconds > WAIT_SECONDS_MAX {
        return Err(bad(format!("a wait of {seconds} s, 1 to {WAIT_SECONDS_MAX} are taken")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advice::{Base, Candidate, ResetEvent, ResetOnto, ResetPlan, Volume};

    fn base(id: &str, deltas: u32) -> Base {
        Base {
            id: id.into(),
            image: "w11:1".into(),
            datastore: "d1".into(),
            state: BaseState::Ready,
            deltas,
            delta_limit: 128,
            size: 1 << 30,
            delta_bytes: 0,
            created_ms: 0,
            labels: Vec::new(),
        }
    }

    fn question(free: u64) -> Question {
        let d1 = Datastore {
            id: "d1".into(),
            health: Health::Online,
            capacity: 1 << 40,
            free,
            reserved: 0,
            bases: 1,
            clones: 0,
            pool_clones: 0,
            latency_us: None,
            labels: Vec::new(),
        };
        Question::Placement {
            request: PlacementRequest {
                clone: "c".into(),
                pool: String::new(),
                image: "w11:1".into(),
                size: 1 << 30,
                lifetime: Lifetime::Ephemeral,
                expected_delta: 1000,
                count: 1,
                labels: Vec::new(),
                rejected: Vec::new(),
            },
            inventory: Inventory { revision: 1, datastores: vec![d1], bases: vec![base("b1", 3), base("b2", 128)] },
        }
    }

    fn choose(n: usize, target: &Target, reason: &str) -> Answer {
        let candidate = Candidate { target: target.clone(), reason: reason.into() };
        Answer::Placement(PlacementVerdict::Choose(vec![candidate; n]))
    }

    #[test]
    fn answers_of_a_wrong_form_are_told_apart() {
        let b1 = Target::Base("b1".into());
        let cases = [
            (choose(1, &b1, "fine"), ""),
            (choose(8, &b1, &"x".repeat(512)), ""),
            (choose(0, &b1, ""), "no candidate"),
            (choose(9, &b1, ""), "9 candidates"),
            (choose(1, &b1, &"x".repeat(513)), "513 bytes"),
            (choose(1, &b1, "a\0b"), "NUL"),
            (choose(1, &Target::Base("nope".into()), ""), "base nope"),
            (choose(1, &Target::NewBaseOn("b1".into()), ""), "datastore b1"),
            (Answer::Rollover(RolloverVerdict::Keep), "another kind"),
        ];
        for (answer, expect) in cases {
            match validate(&question(5000), &answer) {
                Ok(()) => assert!(expect.is_empty(), "{answer:?} passed, expected {expect}"),
                Err(e) => assert!(!expect.is_empty() && e.message().contains(expect), "{answer:?}: {e}"),
            }
        }
    }

    #[test]
    fn the_built_in_rules_satisfy_their_own_check() {
        for free in [0, 5000] {
            let question = question(free);
            validate(&question, &question.builtin()).unwrap();
        }
    }

    #[test]
    fn a_place_that_does_not_hold_says_why() {
        let says = |free, target| {
            let Question::Placement { request, inventory } = question(free) else { unreachable!() };
            usable(&request, &inventory, &target).err().unwrap_or_default()
        };
        assert_eq!(says(5000, Target::Base("b1".into())), "");
        assert!(says(5000, Target::Base("b2".into())).contains("128 slots"));
        assert!(says(999, Target::Base("b1".into())).contains("headroom"));
        assert!(says(5000, Target::Base("b3".into())).contains("no such base"));
    }

    #[test]
    fn nothing_is_discarded_under_an_open_a_held_or_a_persistent_clone() {
        let subject = Volume {
            id: "c".into(),
            pool: String::new(),
            lifetime: Lifetime::Ephemeral,
            created_ms: 0,
            last_reset_ms: None,
            last_exit: crate::advice::Exit::Unknown,
            attached: false,
            held: false,
            delta: 1,
            size: 1 << 30,
            newer: None,
            labels: Vec::new(),
        };
        let request = ResetRequest { event: ResetEvent::PowerOff, subject, base: base("b1", 1) };
        let plan = ResetPlan { timing: ResetTiming::Now, onto: ResetOnto::SameBase, reason: String::new() };
        let discard = ResetVerdict::Discard(plan.clone());
        assert_eq!(settle_reset(&request, discard.clone(), false), (discard.clone(), None));

        let mut open = request.clone();
        open.subject.attached = true;
        let later = ResetVerdict::Discard(ResetPlan { timing: ResetTiming::WhenDetached, ..plan });
        assert_eq!(settle_reset(&open, discard.clone(), false).0, later);

        let mut held = request.clone();
        held.subject.held = true;
        assert_eq!(settle_reset(&held, discard.clone(), true).0, ResetVerdict::Keep);

        let mut persistent = request;
        persistent.subject.lifetime = Lifetime::Persistent;
        assert_eq!(settle_reset(&persistent, discard.clone(), false).0, ResetVerdict::Keep);
        assert_eq!(settle_reset(&persistent, discard.clone(), true).0, discard);
    }
}
