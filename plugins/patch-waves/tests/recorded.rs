//! Decisions that were recorded with this plugin, asked again natively; `tests/tests/components.rs` asks them of the component.

use clonegate_plugin_patch_waves::PatchWaves;
use clonegate_policy::Settings;
use clonegate_policy::testing::{recorded_settings, replay_reset};

#[test]
fn recorded_decisions_come_out_the_same() {
    for file in ["tests/recorded/defaults.jsonl", "tests/recorded/tuned.jsonl"] {
        let policy = PatchWaves::from_json(&recorded_settings(file, "patch-waves")).unwrap();
        replay_reset(&policy, file).assert_same();
    }
}
