//! Imports point downward only, as the table in `ARCHITECTURE.md` says.

use std::collections::BTreeMap;

use clonegate_tests::tree::{self, Source};

/// Module path (as in the table, without `.rs`) → layer.
fn layers() -> BTreeMap<String, u8> {
    let mut layers = BTreeMap::new();
    for line in tree::read("ARCHITECTURE.md").lines() {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let Some(layer) = cells.get(1).and_then(|cell| cell.split(' ').next()?.parse::<u8>().ok()) else { continue };
        for place in cells.get(2).copied().unwrap_or_default().split('`').skip(1).step_by(2) {
            let (before, names) = place.split_once('{').unwrap_or((place, ""));
            if names.is_empty() {
                layers.insert(place.trim_end_matches('/').to_owned(), layer);
            }
            for name in names.trim_end_matches('}').split(',').filter(|name| !name.is_empty()) {
                layers.insert(format!("{before}{name}"), layer);
            }
        }
    }
    layers.insert("gateway/src/main.rs".to_owned(), 7);
    layers
}

/// The top-level module that a file of `root` belongs to.
fn module<'a>(path: &'a str, root: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(root)?;
    Some(rest.split('/').next().unwrap_or(rest).trim_end_matches(".rs"))
}

/// The first segments of all `crate::…` paths in `code`, with groups (`crate::{a, b::c}`) taken apart.
fn imports(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if at > 0 && code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut name = String::new();
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => found.push(std::mem::take(&mut name)),
                    c if depth == 0 => name.push(c),
                    _ => {}
                }
            }
            found.push(name);
        } else {
            found.push(rest.to_owned());
        }
    }
    let first = |text: String| text.trim().split(|c: char| !c.is_alphanumeric() && c != '_').next().map(str::to_owned);
    found.into_iter().filter_map(first).filter(|name| !name.is_empty()).collect()
}

fn upward(root: &str, sources: &[Source], layers: &BTreeMap<String, u8>) -> Vec<String> {
    let layer = |name: &str| layers.get(&format!("{root}{name}")).copied();
    let mut wrong = Vec::new();
    for source in sources.iter().filter(|source| !source.is_test()) {
        let Some(own) = module(&source.path, root).filter(|&name| name != "lib" && name != "main") else { continue };
        let Some(own_layer) = layer(own) else {
            wrong.push(format!("{}: {own} has no layer in ARCHITECTURE.md", source.path));
            continue;
        };
        for used in imports(&source.code()) {
            match layer(&used) {
                Some(used_layer) if used_layer > own_layer => {
                    wrong.push(format!("{}: {own} (layer {own_layer}) uses {used} (layer {used_layer})", source.path));
                }
                _ => {}
            }
        }
    }
    wrong
}

#[test]
fn no_module_imports_from_a_layer_above_its_own() {
    let layers = layers();
    assert!(layers.len() > 15, "the table of layers was not understood: {layers:?}");
    let sources = tree::rust();
    let mut wrong = upward("gateway/core/src/", &sources, &layers);
    wrong.extend(upward("gateway/src/", &sources, &layers));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_upward_import_would_be_seen() {
    let layers = BTreeMap::from([("a/low".to_owned(), 1), ("a/high".to_owned(), 2)]);
    let check = |text: &str, expect: usize| {
        let source = Source { path: "a/low/mod.rs".to_owned(), text: text.to_owned() };
        assert_eq!(upward("a/", &[source], &layers).len(), expect, "{text}");
    };
    check("use crate::high::Thing;", 1);
    check("use crate::{low::x, high::{y, z}};", 1);
    check("use crate::{\n    high,\n};", 1);
    check("fn f() { crate::high::g() }", 1);
    check("// crate::high\nuse crate::low::x;", 0);
    check("use other_crate::high;", 0);
    check("fn f() {}\n#[cfg(test)]\nmod tests { use crate::high; }", 0);
}

#[test]
fn layers_0_and_1_do_no_io_and_know_no_clock() {
    const FORBIDDEN: &[&str] =
        &["std::fs", "std::net", "std::env", "std::thread", "SystemTime", "Instant", "tokio::", "object_store::"];
    for source in tree::rust().iter().filter(|source| source.path.starts_with("gateway/core/src/")) {
        let code = source.code();
        for word in FORBIDDEN {
            assert!(!code.contains(word), "{}: {word} has no place in the pure layers", source.path);
        }
    }
}

#[test]
fn the_policy_host_and_the_sdk_do_not_know_the_gateway() {
    for manifest in ["gateway/core/Cargo.toml", "gateway/policy-host/Cargo.toml", "sdk/Cargo.toml"] {
        let table: toml::Table = tree::read(manifest).parse().expect("a manifest is TOML");
        let dependencies = table.get("dependencies").and_then(|value| value.as_table());
        assert!(dependencies.is_none_or(|all| !all.contains_key("clonegate")), "{manifest} depends on the gateway");
    }
}
