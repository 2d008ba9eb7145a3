//! The JSON of questions and answers is frozen: recorded decisions of years ago stay readable, and the SDK, which has types of its
//! own, reads the very same file (`sdk/tests/golden.rs`).
//!
//! `CLONEGATE_UPDATE_GOLDEN=1` writes the file anew; that is right only for a field or a case that is new.

use clonegate_core::advice::{
    Answer, Base, BaseState, Candidate, Context, Datastore, Deferral, Exit, Health, Hold, Inventory, Label, Lifetime,
    PlacementRequest, PlacementVerdict, Question, Rejection, Release, ResetEvent, ResetOnto, ResetPlan, ResetRequest,
    ResetTiming, ResetVerdict, RolloverRequest, RolloverTrigger, RolloverVerdict, Successor, Target, Volume,
};
use serde::{Deserialize, Serialize};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Golden {
    context: Context,
    questions: Vec<Question>,
    answers: Vec<Answer>,
}

/// Every value of an enum; a new case does not compile until it is listed.
macro_rules! every {
    ($ty:ty { $($pattern:pat => $value:expr),+ $(,)? }) => {{
        let all: Vec<$ty> = vec![$($value),+];
        for value in &all {
            match value { $($pattern => {})+ }
        }
        all
    }};
}

fn labels() -> Vec<Label> {
    vec![
        Label { key: "rack".into(), value: "a".into() },
        Label { key: "clonegate.io/x".into(), value: "ü \"q\"".into() },
    ]
}

fn datastores() -> Vec<Datastore> {
    let health = every!(Health {
        Health::Online => Health::Online,
        Health::Degraded => Health::Degraded,
        Health::Maintenance => Health::Maintenance,
        Health::Offline => Health::Offline,
    });
    let datastore = |(n, health): (usize, Health)| Datastore {
        id: format!("d{n}"),
        health,
        capacity: 1 << 40,
        free: u64::MAX,
        reserved: 3,
        bases: 4,
        clones: 5,
        pool_clones: 6,
        latency_us: (n > 0).then_some(700),
        labels: labels(),
    };
    health.into_iter().enumerate().map(datastore).collect()
}

fn bases() -> Vec<Base> {
    let states = every!(BaseState {
        BaseState::Preparing => BaseState::Preparing,
        BaseState::Ready => BaseState::Ready,
        BaseState::Sealed => BaseState::Sealed,
        BaseState::Retiring => BaseState::Retiring,
        BaseState::Failed => BaseState::Failed,
    });
    let base = |(n, state): (usize, BaseState)| Base {
        id: format!("b{n}"),
        image: "w11:1".into(),
        datastore: "d0".into(),
        state,
        deltas: 7,
        delta_limit: 128,
        size: 8,
        delta_bytes: 9,
        created_ms: 10,
        labels: labels(),
    };
    states.into_iter().enumerate().map(base).collect()
}

fn questions() -> Vec<Question> {
    let inventory = Inventory { revision: 1, datastores: datastores(), bases: bases() };
    let targets = every!(Target {
        Target::Base(_) => Target::Base("b1".into()),
        Target::NewBaseOn(_) => Target::NewBaseOn("d1".into()),
    });
    let lifetimes = every!(Lifetime {
        Lifetime::Persistent => Lifetime::Persistent,
        Lifetime::Ephemeral => Lifetime::Ephemeral,
    });
    let mut all: Vec<Question> = lifetimes
        .iter()
        .map(|lifetime| Question::Placement {
            request: PlacementRequest {
                clone: "c".into(),
                pool: "p".into(),
                image: "w11:1".into(),
                size: 2,
                lifetime: *lifetime,
                expected_delta: 3,
                count: 4,
                labels: labels(),
                rejected: targets.iter().map(|t| Rejection { target: t.clone(), why: "gone".into() }).collect(),
            },
            inventory: inventory.clone(),
        })
        .collect();
    let triggers = every!(RolloverTrigger {
        RolloverTrigger::DeltaAdded => RolloverTrigger::DeltaAdded,
        RolloverTrigger::Periodic => RolloverTrigger::Periodic,
        RolloverTrigger::SpaceChanged => RolloverTrigger::SpaceChanged,
        RolloverTrigger::ImagePublished => RolloverTrigger::ImagePublished,
    });
    all.extend(triggers.into_iter().map(|trigger| Question::Rollover {
        request: RolloverRequest { trigger, subject: bases().remove(0), pending: 2, superseded: true },
        inventory: Inventory::default(),
    }));
    let events = every!(ResetEvent {
        ResetEvent::PowerOn => ResetEvent::PowerOn,
        ResetEvent::PowerOff => ResetEvent::PowerOff,
        ResetEvent::LogOff => ResetEvent::LogOff,
        ResetEvent::Interval(_) => ResetEvent::Interval(5),
        ResetEvent::SizeThreshold(_) => ResetEvent::SizeThreshold(6),
        ResetEvent::ImagePublished => ResetEvent::ImagePublished,
    });
    let exits = every!(Exit {
        Exit::Unknown => Exit::Unknown,
        Exit::Clean => Exit::Clean,
        Exit::Crashed => Exit::Crashed,
        Exit::Forced => Exit::Forced,
    });
    all.extend(events.into_iter().zip(exits.into_iter().cycle()).enumerate().map(|(n, (event, last_exit))| {
        let subject = Volume {
            id: "c".into(),
            pool: String::new(),
            lifetime: Lifetime::Ephemeral,
            created_ms: 1,
            last_reset_ms: (n > 0).then_some(2),
            last_exit,
            attached: n % 2 == 0,
            held: n % 3 == 0,
            delta: 3,
            size: 4,
            newer: (n > 1).then(|| Release { image: "w11:2".into(), published_ms: 5 }),
            labels: labels(),
        };
        Question::Reset { request: ResetRequest { event, subject, base: bases().remove(1) } }
    }));
    all
}

fn answers() -> Vec<Answer> {
    let successor = || Successor { datastores: vec!["d1".into()], reason: "r".into() };
    let candidate = |target| Candidate { target, reason: "r".into() };
    let placement = every!(PlacementVerdict {
        PlacementVerdict::NoOpinion => PlacementVerdict::NoOpinion,
        PlacementVerdict::Choose(_) => PlacementVerdict::Choose(vec![
            candidate(Target::Base("b1".into())),
            candidate(Target::NewBaseOn("d1".into())),
        ]),
        PlacementVerdict::Refuse(_) => PlacementVerdict::Refuse("no".into()),
        PlacementVerdict::Defer(_) => PlacementVerdict::Defer(Deferral { seconds: 9, reason: "later".into() }),
    });
    let rollover = every!(RolloverVerdict {
        RolloverVerdict::NoOpinion => RolloverVerdict::NoOpinion,
        RolloverVerdict::Keep => RolloverVerdict::Keep,
        RolloverVerdict::Seal(_) => RolloverVerdict::Seal("full".into()),
        RolloverVerdict::Prepare(_) => RolloverVerdict::Prepare(successor()),
        RolloverVerdict::RollOver(_) => RolloverVerdict::RollOver(successor()),
        RolloverVerdict::Retire(_) => RolloverVerdict::Retire("old".into()),
    });
    let timings = every!(ResetTiming {
        ResetTiming::Now => ResetTiming::Now,
        ResetTiming::WhenDetached => ResetTiming::WhenDetached,
    });
    let onto = every!(ResetOnto {
        ResetOnto::SameBase => ResetOnto::SameBase,
        ResetOnto::NewestBase => ResetOnto::NewestBase,
    });
    let plan = |n: usize| ResetPlan { timing: timings[n], onto: onto[n], reason: "r".into() };
    let mut reset = every!(ResetVerdict {
        ResetVerdict::NoOpinion => ResetVerdict::NoOpinion,
        ResetVerdict::Keep => ResetVerdict::Keep,
        ResetVerdict::Discard(_) => ResetVerdict::Discard(plan(0)),
        ResetVerdict::Hold(_) => ResetVerdict::Hold(Hold { seconds: Some(8), reason: "exam".into() }),
        ResetVerdict::AskAgain(_) => ResetVerdict::AskAgain(10),
    });
    reset.push(ResetVerdict::Discard(plan(1)));
    reset.push(ResetVerdict::Hold(Hold { seconds: None, reason: "exam".into() }));
    let placement = placement.into_iter().map(Answer::Placement);
    placement.chain(rollover.into_iter().map(Answer::Rollover)).chain(reset.into_iter().map(Answer::Reset)).collect()
}

#[test]
fn questions_and_answers_are_written_and_read_as_ever() {
    let context = Context { decision: "d_1".into(), now_ms: 1_735_732_800_000, seed: u64::MAX, sequence: 3 };
    let golden = Golden { context, questions: questions(), answers: answers() };
    let text = serde_json::to_string_pretty(&golden).unwrap() + "\n";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../sdk/tests/golden/advice.json");
    if std::env::var_os("CLONEGATE_UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let frozen = std::fs::read_to_string(path).unwrap();
    assert_eq!(text, frozen);
    assert_eq!(serde_json::from_str::<Golden>(&frozen).unwrap(), golden);
}
