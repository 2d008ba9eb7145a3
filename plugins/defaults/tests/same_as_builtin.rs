//! With default settings the plugin answers as the built-in rules of the gateway do. Questions and answers pass between the
//! two as JSON, so this also holds the SDK's types to the gateway's own.

use clonegate_core::advice;
use clonegate_plugin_defaults::Defaults;
use clonegate_policy::prelude::*;
use clonegate_policy::testing::context;
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The same value in the types of the other crate.
fn across<A: Serialize, B: DeserializeOwned>(value: &A) -> B {
    let json = serde_json::to_value(value).unwrap();
    serde_json::from_value(json.clone()).unwrap_or_else(|e| panic!("{e}: {json}"))
}

fn label() -> impl Strategy<Value = advice::Label> {
    ("[a-z]{1,4}", "[a-z0-9]{0,4}").prop_map(|(key, value)| advice::Label { key, value })
}

fn labels() -> impl Strategy<Value = Vec<advice::Label>> {
    proptest::collection::vec(label(), 0..3)
}

fn datastore(n: usize) -> impl Strategy<Value = advice::Datastore> {
    let health = prop_oneof![
        4 => Just(advice::Health::Online),
        1 => Just(advice::Health::Degraded),
        1 => Just(advice::Health::Maintenance),
        1 => Just(advice::Health::Offline),
    ];
    (health, 0..4000_u64, 0..2000_u64, any::<Option<u32>>(), labels()).prop_map(
        move |(health, free, reserved, latency_us, labels)| {
            let id = format!("d{n}");
            advice::Datastore {
                id,
                health,
                capacity: 4000,
                free,
                reserved,
                bases: 1,
                clones: 2,
                pool_clones: 3,
                latency_us,
                labels,
            }
        },
    )
}

fn base(n: usize) -> impl Strategy<Value = advice::Base> {
    let state = prop_oneof![
        4 => Just(advice::BaseState::Ready),
        1 => Just(advice::BaseState::Preparing),
        1 => Just(advice::BaseState::Sealed),
        1 => Just(advice::BaseState::Retiring),
        1 => Just(advice::BaseState::Failed),
    ];
    (state, 0..3_u8, 0..5_u8, 0..140_u32, 1..140_u32, labels()).prop_map(
        move |(state, image, datastore, deltas, delta_limit, labels)| advice::Base {
            id: format!("b{n}"),
            image: format!("w{image}:1"),
            datastore: format!("d{datastore}"),
            state,
            deltas,
            delta_limit,
            size: 1 << 30,
            delta_bytes: 7,
            created_ms: 8,
            labels,
        },
    )
}

fn inventory() -> impl Strategy<Value = advice::Inventory> {
    let datastores: Vec<_> = (0..4).map(datastore).collect();
    let bases: Vec<_> = (0..12).map(base).collect();
    (datastores, bases).prop_map(|(datastores, bases)| advice::Inventory { revision: 1, datastores, bases })
}

fn placement() -> impl Strategy<Value = advice::PlacementRequest> {
    let target = prop_oneof![
        (0..12_u8).prop_map(|n| advice::Target::Base(format!("b{n}"))),
        (0..4_u8).prop_map(|n| advice::Target::NewBaseOn(format!("d{n}"))),
    ];
    let rejection = target.prop_map(|target| advice::Rejection { target, why: "gone".into() });
    (0..3_u8, 0..3000_u64, labels(), proptest::collection::vec(rejection, 0..4)).prop_map(
        |(image, expected_delta, labels, rejected)| advice::PlacementRequest {
            clone: "c".into(),
            pool: "p".into(),
            image: format!("w{image}:1"),
            size: 1 << 30,
            lifetime: advice::Lifetime::Ephemeral,
            expected_delta,
            count: 1,
            labels,
            rejected,
        },
    )
}

fn reset() -> impl Strategy<Value = advice::ResetRequest> {
    let event = prop_oneof![
        Just(advice::ResetEvent::PowerOn),
        Just(advice::ResetEvent::PowerOff),
        Just(advice::ResetEvent::LogOff),
        any::<u64>().prop_map(advice::ResetEvent::Interval),
        any::<u64>().prop_map(advice::ResetEvent::SizeThreshold),
        Just(advice::ResetEvent::ImagePublished),
    ];
    let exit = prop_oneof![
        Just(advice::Exit::Unknown),
        Just(advice::Exit::Clean),
        Just(advice::Exit::Crashed),
        Just(advice::Exit::Forced)
    ];
    (event, exit, any::<[bool; 3]>(), any::<Option<u64>>(), base(0), labels()).prop_map(
        |(event, last_exit, [persistent, attached, held], last_reset_ms, base, labels)| advice::ResetRequest {
            event,
            subject: advice::Volume {
                id: "c".into(),
                pool: String::new(),
                lifetime: if persistent { advice::Lifetime::Persistent } else { advice::Lifetime::Ephemeral },
                created_ms: 1,
                last_reset_ms,
                last_exit,
                attached,
                held,
                delta: 5,
                size: 1 << 30,
                newer: last_reset_ms.map(|published_ms| advice::Release { image: "w1:2".into(), published_ms }),
                labels,
            },
            base,
        },
    )
}

proptest! {
    #[test]
    fn placement_is_the_built_in_rule(request in placement(), inventory in inventory()) {
        let says = Defaults::default().place(&context(), &across(&request), &across(&inventory)).unwrap();
        prop_assert_eq!(across::<_, advice::PlacementVerdict>(&says), advice::builtin::place(&request, &inventory));
    }

    #[test]
    fn rollover_is_the_built_in_rule(subject in base(0), inventory in inventory(), superseded: bool) {
        let trigger = advice::RolloverTrigger::DeltaAdded;
        let request = advice::RolloverRequest { trigger, subject, pending: 3, superseded };
        let says = Defaults::default().roll_over(&context(), &across(&request), &across(&inventory)).unwrap();
        prop_assert_eq!(across::<_, advice::RolloverVerdict>(&says), advice::builtin::roll_over(&request));
    }

    #[test]
    fn reset_is_the_built_in_rule(request in reset()) {
        let says = Defaults::default().reset(&context(), &across(&request)).unwrap();
        prop_assert_eq!(across::<_, advice::ResetVerdict>(&says), advice::builtin::reset(&request));
    }
}
