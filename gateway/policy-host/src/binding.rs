//! Which plugins are asked for what, in which order, with which settings.

use std::time::Duration;

use bytesize::ByteSize;
use serde::de::{MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use clonegate_core::advice::Slot;

use crate::limits::CallLimits;

/// Whether an answer counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// It does.
    #[default]
    Enforce,
    /// It is recorded beside the answer that counts, with whether it differs.
    Shadow,
}

/// What stands when the plugin fails and no later one answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// The built-in rule.
    #[default]
    Builtin,
    /// Reset only: the delta is kept.
    Keep,
    /// Reset only: the delta is held until somebody decides.
    Hold,
}

/// One plugin in the chain of a slot. In configuration a name alone, or a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The name that it is installed under.
    pub plugin: String,
    /// Pools that it is asked for, with `*` as a wildcard; empty: all, and clones of no pool.
    pub pools: Vec<String>,
    /// Whether its answer counts.
    pub mode: Mode,
    /// Its settings; the plugin's schema says which.
    pub settings: serde_json::Value,
    /// What stands when it fails.
    pub on_failure: OnFailure,
    /// What a call may take, where that differs from the sandbox; in configuration the keys `fuel`, `memory` and `time`.
    pub limits: CallLimits,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    plugin: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pools: Vec<String>,
    #[serde(default)]
    mode: Mode,
    #[serde(default)]
    on_failure: OnFailure,
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    settings: serde_json::Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fuel: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    memory: Option<ByteSize>,
    #[serde(default, with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    time: Option<Duration>,
}

impl Serialize for Binding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if *self == Self::of(&self.plugin) {
            return serializer.serialize_str(&self.plugin);
        }
        let Self { plugin, pools, mode, settings, on_failure, limits } = self.clone();
        let CallLimits { fuel, memory_bytes, wall: time } = limits;
        let memory = memory_bytes.map(ByteSize::b);
        Table { plugin, pools, mode, on_failure, settings, fuel, memory, time }.serialize(serializer)
    }
}

impl Binding {
    /// A plugin for every pool, without settings.
    pub fn of(plugin: &str) -> Self {
        Self {
            plugin: plugin.to_owned(),
            pools: Vec::new(),
            mode: Mode::Enforce,
            settings: serde_json::Value::Null,
            on_failure: OnFailure::Builtin,
            limits: CallLimits::default(),
        }
    }

    /// Whether it is asked for a question about this pool (empty: about none).
    pub fn covers(&self, pool: &str) -> bool {
        self.pools.is_empty() || self.pools.iter().any(|pattern| matches(pattern, pool))
    }

    /// Its settings as the JSON text that the plugin gets.
    pub(crate) fn settings_text(&self) -> String {
        if self.settings.is_null() { "{}".to_owned() } else { self.settings.to_string() }
    }
}

impl<'de> Deserialize<'de> for Binding {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrTable;
        impl<'de> Visitor<'de> for NameOrTable {
            type Value = Binding;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("the name of a plugin, or a table with `plugin`")
            }
            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Binding, E> {
                Ok(Binding::of(name))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Binding, A::Error> {
                let t = Table::deserialize(MapAccessDeserializer::new(map))?;
                let memory_bytes = t.memory.map(|bytes| bytes.as_u64());
                let limits = CallLimits { fuel: t.fuel, memory_bytes, wall: t.time };
                if let Some((key, range)) = limits.wrong() {
                    let plugin = &t.plugin;
                    return Err(serde::de::Error::custom(format!("`{key}` of the plugin {plugin} is {range}")));
                }
                Ok(Binding {
                    plugin: t.plugin,
                    pools: t.pools,
                    mode: t.mode,
                    settings: t.settings,
                    on_failure: t.on_failure,
                    limits,
                })
            }
        }
        deserializer.deserialize_any(NameOrTable)
    }
}

/// The chains of the three slots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Chains {
    /// Asked where clones go.
    pub placement: Vec<Binding>,
    /// Asked whether bases need successors.
    pub rollover: Vec<Binding>,
    /// Asked whether clones are reset.
    pub reset: Vec<Binding>,
}

impl Default for Chains {
    /// The plugin `default` everywhere.
    fn default() -> Self {
        let defaults = || vec![Binding::of("default")];
        Self { placement: defaults(), rollover: defaults(), reset: defaults() }
    }
}

impl Chains {
    /// The chain of one slot.
    pub fn of(&self, slot: Slot) -> &[Binding] {
        match slot {
            Slot::Placement => &self.placement,
            Slot::Rollover => &self.rollover,
            Slot::Reset => &self.reset,
        }
    }
}

/// `*` stands for any run of characters; everything else for itself. Linear in pattern times text.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let parts: Vec<_> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_are_matched_with_wildcards() {
        let cases = [
            ("win11-*", "win11-a", true),
            ("win11-*", "win10-a", false),
            ("*", "", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c", false),
            ("exact", "exact", true),
            ("exact", "exactly", false),
            ("*a*", "bab", true),
        ];
        for (pattern, text, expect) in cases {
            assert_eq!(matches(pattern, text), expect, "{pattern} {text}");
        }
    }

    #[test]
    fn a_binding_is_a_name_or_a_table_and_wrong_keys_are_named() {
        let chains: Chains = serde_json::from_str(
            r#"{"placement": ["spread", {"plugin": "tenant", "pools": ["a*"], "mode": "shadow", "settings": {"x": 1}}]}"#,
        )
        .unwrap();
        assert_eq!(chains.placement[0], Binding::of("spread"));
        assert_eq!((chains.placement[1].mode, chains.placement[1].settings["x"].as_i64()), (Mode::Shadow, Some(1)));
        assert_eq!(chains.reset, Chains::default().reset);
        let text = serde_json::to_string(&chains).unwrap();
        assert_eq!(serde_json::from_str::<Chains>(&text).unwrap(), chains);
        assert!(text.starts_with(r#"{"placement":["spread",{"plugin":"tenant","pools""#), "{text}");
        let wrong = serde_json::from_str::<Chains>(r#"{"reset": [{"plugin": "a", "colour": 1}]}"#).unwrap_err();
        assert!(wrong.to_string().contains("colour"), "{wrong}");
    }

    #[test]
    fn a_place_in_a_chain_has_limits_of_its_own_within_bounds() {
        let read = |keys: &str| serde_json::from_str::<Binding>(&format!(r#"{{"plugin": "a", {keys}}}"#));
        let binding = read(r#""fuel": 40000000, "memory": "32MiB", "time": "500ms""#).unwrap();
        let expect =
            CallLimits { fuel: Some(40_000_000), memory_bytes: Some(32 << 20), wall: Some(Duration::from_millis(500)) };
        assert_eq!(binding.limits, expect);
        let text = serde_json::to_string(&binding).unwrap();
        assert_eq!(serde_json::from_str::<Binding>(&text).unwrap(), binding, "{text}");
        for (keys, key) in [
            (r#""fuel": 1"#, "fuel"),
            (r#""fuel": 3000000000"#, "fuel"),
            (r#""memory": "1KiB""#, "memory"),
            (r#""memory": "65MiB""#, "memory"),
            (r#""time": "1ms""#, "time"),
            (r#""time": "3s""#, "time"),
        ] {
            let wrong = read(keys).unwrap_err().to_string();
            assert!(wrong.contains(&format!("`{key}` of the plugin a is from")), "{keys}: {wrong}");
        }
    }
}
