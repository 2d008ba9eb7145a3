//! The examples are what they say.

use clonegate::config::{self, Config};
use clonegate_tests::tree;

/// All keys of a table, as `a.b`; the tables of an array are one.
fn keys(table: &toml::Table, before: &str, found: &mut Vec<String>) {
    for (key, value) in table {
        let path = format!("{before}{key}");
        match value {
            toml::Value::Table(inner) => keys(inner, &format!("{path}."), found),
            toml::Value::Array(items) if items.iter().any(toml::Value::is_table) => {
                for inner in items.iter().filter_map(toml::Value::as_table) {
                    keys(inner, &format!("{path}."), found);
                }
            }
            _ => found.push(path),
        }
    }
}

#[test]
fn the_example_configuration_loads_and_names_every_key() {
    let text = tree::read("examples/clonegate.toml");
    let loaded = config::from_text(&text).expect("the example is right");
    assert_eq!(loaded.datastore.len(), 2);
    let mut said = Vec::new();
    keys(&text.parse().expect("the example is TOML"), "", &mut said);
    let mut known = Vec::new();
    let defaults = config::to_text(&Config::default()).expect("the defaults can be written");
    keys(&defaults.parse().expect("the defaults are TOML"), "", &mut known);
    // An empty list of tables has no keys of its own.
    let names = |key: &String| said.iter().any(|named| named == key || named.starts_with(&format!("{key}.")));
    let missing: Vec<_> = known.iter().filter(|key| !names(key)).collect();
    assert!(missing.is_empty(), "examples/clonegate.toml does not name {missing:?}");
}

#[test]
fn the_kea_example_is_json() {
    serde_json::from_str::<serde_json::Value>(&tree::read("examples/boot/kea-dhcp4.json")).expect("it is JSON");
}
