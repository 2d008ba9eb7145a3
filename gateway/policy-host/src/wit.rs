//! The WIT package as wasmtime sees it, and the host's own types turned into it and back.
//!
//! Questions are borrowed, not copied: lowering them into the guest is most of what a decision costs.

use clonegate_core::advice;

mod inventory;

pub(crate) use inventory::Flat;

#[allow(
    missing_docs,
    unreachable_pub,
    missing_debug_implementations,
    clippy::all,
    clippy::pedantic,
    reason = "generated from wit/"
)]
pub(crate) mod bindings {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "all-policies",
        ownership: Borrowing { duplicate_if_necessary: false },
    });
}

pub(crate) use bindings::clonegate::policy::log;
pub(crate) use bindings::clonegate::policy::types as wit;
pub(crate) use bindings::exports::clonegate::policy::{placement, plugin, reset, rollover};

/// The labels of some records, in one allocation that the records borrow from.
#[derive(Debug)]
pub(crate) struct Labels<'a> {
    flat: Vec<wit::Label<'a>>,
    ends: Vec<usize>,
}

impl<'a> Labels<'a> {
    pub(crate) fn of(lists: impl Iterator<Item = &'a [advice::Label]>) -> Self {
        let (mut flat, mut ends) = (Vec::new(), Vec::new());
        for list in lists {
            flat.extend(list.iter().map(|l| wit::Label { key: &l.key, value: &l.value }));
            ends.push(flat.len());
        }
        Self { flat, ends }
    }

    fn get(&self, record: usize) -> &[wit::Label<'a>] {
        let start = record.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        let end = self.ends.get(record).copied().unwrap_or(start);
        self.flat.get(start..end).unwrap_or_default()
    }
}

pub(crate) fn context(context: &advice::Context) -> wit::Context<'_> {
    wit::Context { decision: &context.decision, now_ms: context.now_ms, seed: context.seed, sequence: context.sequence }
}

const fn base_state(state: advice::BaseState) -> wit::BaseState<'static> {
    match state {
        advice::BaseState::Preparing => wit::BaseState::Preparing,
        advice::BaseState::Ready => wit::BaseState::Ready,
        advice::BaseState::Sealed => wit::BaseState::Sealed,
        advice::BaseState::Retiring => wit::BaseState::Retiring,
        advice::BaseState::Failed => wit::BaseState::Failed,
    }
}

pub(crate) fn base<'a>(base: &'a advice::Base, labels: &'a [wit::Label<'a>]) -> wit::Base<'a> {
    wit::Base {
        id: &base.id,
        image: &base.image,
        datastore: &base.datastore,
        state: base_state(base.state),
        deltas: base.deltas,
        delta_limit: base.delta_limit,
        size: base.size,
        delta_bytes: base.delta_bytes,
        created_ms: base.created_ms,
        labels,
    }
}

fn lifetime(lifetime: advice::Lifetime) -> wit::Lifetime {
    match lifetime {
        advice::Lifetime::Persistent => wit::Lifetime::Persistent,
        advice::Lifetime::Ephemeral => wit::Lifetime::Ephemeral,
    }
}

pub(crate) fn rejected_targets(request: &advice::PlacementRequest) -> Vec<wit::Target> {
    let target = |t: &advice::Target| match t {
        advice::Target::Base(id) => wit::Target::Base(id.clone()),
        advice::Target::NewBaseOn(id) => wit::Target::NewBaseOn(id.clone()),
    };
    request.rejected.iter().map(|r| target(&r.target)).collect()
}

pub(crate) fn rejections<'a>(
    request: &'a advice::PlacementRequest,
    targets: &'a [wit::Target],
) -> Vec<wit::Rejection<'a>> {
    request.rejected.iter().zip(targets).map(|(r, target)| wit::Rejection { target, why: &r.why }).collect()
}

pub(crate) fn placement_request<'a>(
    request: &'a advice::PlacementRequest,
    labels: &'a Labels<'a>,
    rejected: &'a [wit::Rejection<'a>],
) -> wit::PlacementRequest<'a> {
    wit::PlacementRequest {
        clone: &request.clone,
        pool: &request.pool,
        image: &request.image,
        size: request.size,
        lifetime: lifetime(request.lifetime),
        expected_delta: request.expected_delta,
        count: request.count,
        labels: labels.get(0),
        rejected,
    }
}

pub(crate) fn rollover_request<'a>(
    request: &'a advice::RolloverRequest,
    labels: &'a Labels<'a>,
) -> wit::RolloverRequest<'a> {
    wit::RolloverRequest {
        trigger: match request.trigger {
            advice::RolloverTrigger::DeltaAdded => wit::RolloverTrigger::DeltaAdded,
            advice::RolloverTrigger::Periodic => wit::RolloverTrigger::Periodic,
            advice::RolloverTrigger::SpaceChanged => wit::RolloverTrigger::SpaceChanged,
            advice::RolloverTrigger::ImagePublished => wit::RolloverTrigger::ImagePublished,
        },
        subject: base(&request.subject, labels.get(0)),
        pending: request.pending,
        superseded: request.superseded,
    }
}

/// `labels` holds those of the clone, then those of its base.
pub(crate) fn reset_request<'a>(request: &'a advice::ResetRequest, labels: &'a Labels<'a>) -> wit::ResetRequest<'a> {
    let v = &request.subject;
    wit::ResetRequest {
        event: match request.event {
            advice::ResetEvent::PowerOn => wit::ResetEvent::PowerOn,
            advice::ResetEvent::PowerOff => wit::ResetEvent::PowerOff,
            advice::ResetEvent::LogOff => wit::ResetEvent::LogOff,
            advice::ResetEvent::Interval(ms) => wit::ResetEvent::Interval(ms),
            advice::ResetEvent::SizeThreshold(bytes) => wit::ResetEvent::SizeThreshold(bytes),
            advice::ResetEvent::ImagePublished => wit::ResetEvent::ImagePublished,
        },
        subject: wit::Volume {
            id: &v.id,
            pool: &v.pool,
            lifetime: lifetime(v.lifetime),
            created_ms: v.created_ms,
            last_reset_ms: v.last_reset_ms,
            last_exit: match v.last_exit {
                advice::Exit::Unknown => wit::Exit::Unknown,
                advice::Exit::Clean => wit::Exit::Clean,
                advice::Exit::Crashed => wit::Exit::Crashed,
                advice::Exit::Forced => wit::Exit::Forced,
            },
            attached: v.attached,
            held: v.held,
            delta: v.delta,
            size: v.size,
            newer: v.newer.as_ref().map(|r| wit::Release { image: &r.image, published_ms: r.published_ms }),
            labels: labels.get(0),
        },
        base: base(&request.base, labels.get(1)),
    }
}

pub(crate) fn placement_verdict(verdict: wit::PlacementVerdict) -> advice::PlacementVerdict {
    let target = |t| match t {
        wit::Target::Base(id) => advice::Target::Base(id),
        wit::Target::NewBaseOn(id) => advice::Target::NewBaseOn(id),
    };
    match verdict {
        wit::PlacementVerdict::NoOpinion => advice::PlacementVerdict::NoOpinion,
        wit::PlacementVerdict::Choose(candidates) => advice::PlacementVerdict::Choose(
            candidates.into_iter().map(|c| advice::Candidate { target: target(c.target), reason: c.reason }).collect(),
        ),
        wit::PlacementVerdict::Refuse(why) => advice::PlacementVerdict::Refuse(why),
        wit::PlacementVerdict::Defer(d) => {
            advice::PlacementVerdict::Defer(advice::Deferral { seconds: d.seconds, reason: d.reason })
        }
    }
}

pub(crate) fn rollover_verdict(verdict: wit::RolloverVerdict) -> advice::RolloverVerdict {
    let successor = |s: wit::Successor| advice::Successor { datastores: s.datastores, reason: s.reason };
    match verdict {
        wit::RolloverVerdict::NoOpinion => advice::RolloverVerdict::NoOpinion,
        wit::RolloverVerdict::Keep => advice::RolloverVerdict::Keep,
        wit::RolloverVerdict::Seal(why) => advice::RolloverVerdict::Seal(why),
        wit::RolloverVerdict::Prepare(s) => advice::RolloverVerdict::Prepare(successor(s)),
        wit::RolloverVerdict::RollOver(s) => advice::RolloverVerdict::RollOver(successor(s)),
        wit::RolloverVerdict::Retire(why) => advice::RolloverVerdict::Retire(why),
    }
}

pub(crate) fn reset_verdict(verdict: wit::ResetVerdict) -> advice::ResetVerdict {
    match verdict {
        wit::ResetVerdict::NoOpinion => advice::ResetVerdict::NoOpinion,
        wit::ResetVerdict::Keep => advice::ResetVerdict::Keep,
        wit::ResetVerdict::Discard(plan) => advice::ResetVerdict::Discard(advice::ResetPlan {
            timing: match plan.timing {
                wit::ResetTiming::Now => advice::ResetTiming::Now,
                wit::ResetTiming::WhenDetached => advice::ResetTiming::WhenDetached,
            },
            onto: match plan.onto {
                wit::ResetOnto::SameBase => advice::ResetOnto::SameBase,
                wit::ResetOnto::NewestBase => advice::ResetOnto::NewestBase,
            },
            reason: plan.reason,
        }),
        wit::ResetVerdict::Hold(hold) => {
            advice::ResetVerdict::Hold(advice::Hold { seconds: hold.seconds, reason: hold.reason })
        }
        wit::ResetVerdict::AskAgain(seconds) => advice::ResetVerdict::AskAgain(seconds),
    }
}
