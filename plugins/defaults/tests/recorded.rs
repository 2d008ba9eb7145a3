//! Decisions that were recorded with this plugin, asked again natively; `tests/tests/components.rs` asks them of the component.

use clonegate_plugin_defaults::Defaults;
use clonegate_policy::Settings;
use clonegate_policy::testing::{recorded_settings, replay_placement, replay_reset, replay_rollover};

#[test]
fn recorded_decisions_come_out_the_same() {
    for file in ["tests/recorded/defaults.jsonl", "tests/recorded/tuned.jsonl"] {
        let policy = Defaults::from_json(&recorded_settings(file, "default")).unwrap();
        replay_placement(&policy, file).assert_same();
        replay_rollover(&policy, file).assert_same();
        replay_reset(&policy, file).assert_same();
    }
}
