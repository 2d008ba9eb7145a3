//! Decisions that were recorded with this plugin, asked again natively; `tests/tests/components.rs` asks them of the component.

use clonegate_plugin_base_affinity::BaseAffinity;
use clonegate_policy::Settings;
use clonegate_policy::testing::{recorded_settings, replay_placement};

#[test]
fn recorded_decisions_come_out_the_same() {
    for file in ["tests/recorded/defaults.jsonl", "tests/recorded/tuned.jsonl"] {
        let policy = BaseAffinity::from_json(&recorded_settings(file, "base-affinity")).unwrap();
        replay_placement(&policy, file).assert_same();
    }
}
