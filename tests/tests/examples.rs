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

/// The keys of the example that no comment calls one: neither at the end of their line, nor right above them or above the first table of
/// their name.
fn promised(text: &str) -> Vec<String> {
    let (mut table, mut above) = (String::new(), false);
    let (mut example_tables, mut found) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let (code, comment) = line.split_once('#').map_or((line, ""), |(code, comment)| (code, comment));
        let (code, example) = (code.trim(), comment.contains("example"));
        if code.is_empty() {
            // A line that is empty ends what is said of the next key.
            above = !comment.is_empty() && (above || example);
        } else if code.starts_with('[') {
            table = format!("{}.", code.trim_matches(['[', ']']));
            if above || example {
                example_tables.push(table.clone());
            }
            above = false;
        } else if let Some((key, _)) = code.split_once('=') {
            if !(example || above || example_tables.contains(&table)) {
                found.push(format!("{table}{}", key.trim()));
            }
            above = false;
        }
    }
    found
}

/// The value of `a.b`.
fn value<'a>(table: &'a toml::Table, key: &str) -> Option<&'a toml::Value> {
    match key.split_once('.') {
        Some((outer, inner)) => value(table.get(outer)?.as_table()?, inner),
        None => table.get(key),
    }
}

#[test]
fn what_the_example_configuration_does_not_call_an_example_is_the_default() {
    let text = tree::read("examples/clonegate.toml");
    let printed = |config: &Config| -> toml::Table { config::to_text(config).unwrap().parse().unwrap() };
    let example = printed(&config::from_text(&text).expect("the example is right"));
    let default = printed(&Config::default());
    let promised = promised(&text);
    let wrong: Vec<_> = promised.iter().filter(|key| value(&example, key) != value(&default, key)).collect();
    assert!(wrong.is_empty(), "neither the default nor called an example: {wrong:?}");
    for key in ["home", "boot.unknown", "limits.nbd_waiting", "log.format"] {
        assert!(promised.iter().any(|promised| promised == key), "{key} is looked at: {promised:?}");
    }
    for key in ["sources", "datastore.url"] {
        assert!(!promised.iter().any(|promised| promised == key), "{key} is called an example");
    }
}

#[test]
fn the_kea_example_is_json() {
    serde_json::from_str::<serde_json::Value>(&tree::read("examples/boot/kea-dhcp4.json")).expect("it is JSON");
}
