//! Habits of the project that a program can check.

use std::collections::BTreeSet;
use std::path::Path;

use clonegate_tests::{programs, tree};

/// Fails with all of `wrong` at once.
fn none(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_file_is_one_job_of_at_most_600_lines() {
    let long = |source: &tree::Source| {
        (!source.is_test() && source.shipped_lines() > 600)
            .then(|| format!("{}: {}", source.path, source.shipped_lines()))
    };
    none(&tree::rust().iter().filter_map(long).collect::<Vec<_>>());
}

#[test]
fn every_file_says_first_what_it_is_for() {
    // The scaffold is what a plugin author begins with: the ten lines that the page about plugins shows.
    let silent = |source: &tree::Source| {
        !source.is_test() && !source.path.contains("/scaffold/") && !source.text.starts_with("//!")
    };
    none(&tree::rust().into_iter().filter(silent).map(|source| source.path).collect::<Vec<_>>());
}

#[test]
fn nothing_is_left_for_later_in_the_code() {
    // Put together here, so that this file does not find itself.
    let words = [["FIX", "ME"], ["XX", "X"], ["dbg", "!("], ["to", "do!("], ["unimplemen", "ted!("]]
        .map(|parts| parts.concat());
    let mut wrong = Vec::new();
    for source in tree::rust() {
        for (number, line) in source.text.lines().enumerate() {
            wrong.extend(
                words
                    .iter()
                    .filter(|word| line.contains(*word))
                    .map(|word| format!("{}:{}: {word}", source.path, number + 1)),
            );
        }
    }
    none(&wrong);
}

#[test]
fn no_path_of_a_machine_is_in_the_tree() {
    let places = [["/wo", "rk/"], ["/ro", "ot/"], ["/fa", "rm/"]].map(|parts| parts.concat());
    let mut wrong = Vec::new();
    for source in tree::files(&[".rs", ".md", ".toml", ".sh", ".py", ".wit", ".json", "run", ".ipxe", ".conf", ".txt"])
    {
        for place in &places {
            for (at, _) in source.text.match_indices(place.as_str()) {
                let before = source.text[..at].chars().next_back().unwrap_or(' ');
                if !before.is_alphanumeric() && !"./}$_-".contains(before) {
                    let number = source.text[..at].lines().count();
                    wrong.push(format!("{}:{number}: {place}", source.path));
                }
            }
        }
    }
    none(&wrong);
}

#[test]
fn time_randomness_keys_and_bincode_have_one_home_each() {
    // (what, where it may be)
    const HOMES: &[(&str, &str)] = &[
        ("bincode::", "gateway/core/src/format/envelope.rs"),
        ("SystemTime::now", "gateway/src/clock.rs"),
        ("tokio::time::sleep(", "gateway/src/clock.rs"),
        ("rand::", "gateway/src/clock.rs"),
        ("Path::parse(", "gateway/src/store/"),
    ];
    let mut wrong = Vec::new();
    for source in tree::rust().iter().filter(|source| source.path.starts_with("gateway/")) {
        if source.is_test() || source.path.contains("/benches/") || source.path.contains("/fuzz/") {
            continue;
        }
        let code = source.code();
        for (what, home) in HOMES {
            let uses = code
                .match_indices(what)
                .any(|(at, _)| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'));
            if uses && !source.path.starts_with(home) {
                wrong.push(format!("{}: {what} belongs in {home}", source.path));
            }
        }
    }
    none(&wrong);
}

#[test]
fn the_changelog_has_a_place_for_the_next_release() {
    let text = tree::read("CHANGELOG.md");
    assert!(text.contains("\n## [Unreleased]\n"), "CHANGELOG.md has no `## [Unreleased]` section");
}

#[test]
fn every_decision_record_has_its_own_number_and_the_three_parts() {
    let mut numbers = BTreeSet::new();
    let mut wrong = Vec::new();
    for source in tree::files(&[".md"]).iter().filter(|source| source.path.starts_with("docs/adr/")) {
        let name = source.path.trim_start_matches("docs/adr/");
        let number =
            name.split('-').next().filter(|number| number.len() == 4).and_then(|number| number.parse::<u32>().ok());
        match number {
            None => wrong.push(format!("{name}: its name does not begin with four digits and a dash")),
            Some(number) if !numbers.insert(number) => wrong.push(format!("{name}: {number} is used twice")),
            Some(_) => {}
        }
        let lower = source.text.to_lowercase();
        for part in ["context", "decision", "consequences"] {
            if !lower.contains(part) {
                wrong.push(format!("{name}: has no {part}"));
            }
        }
    }
    none(&wrong);
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    let mut wrong = Vec::new();
    for source in tree::files(&[".md"]) {
        let dir = tree::root().join(&source.path);
        let dir = dir.parent().unwrap_or(Path::new("."));
        for (at, _) in source.text.match_indices("](") {
            let target = source.text[at + 2..].split([')', ' ', '\n']).next().unwrap_or_default();
            let file = target.split('#').next().unwrap_or_default();
            if file.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            if !dir.join(file).exists() {
                wrong.push(format!("{}: {target}", source.path));
            }
        }
    }
    none(&wrong);
}

#[test]
fn ci_installs_every_package_that_a_test_may_need() {
    let list = tree::read("tests/rig/packages.txt");
    let listed: BTreeSet<_> = list.lines().map(|line| line.split('#').next().unwrap_or_default().trim()).collect();
    let missing = programs::packages()
        .filter(|package| !listed.contains(package) && !["apt", "bash", "qemu-utils"].contains(package));
    none(&missing.map(str::to_owned).collect::<Vec<_>>());
}

#[test]
fn every_test_that_the_specification_names_exists() {
    let code: String = tree::rust().into_iter().map(|source| source.text).collect();
    let mut wrong = Vec::new();
    for name in tree::read("SPECIFICATION.md").split('`').skip(1).step_by(2) {
        let is_test = name.matches('_').count() >= 3
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        if is_test && !code.contains(&format!("fn {name}(")) {
            wrong.push(format!("SPECIFICATION.md names {name}"));
        }
    }
    none(&wrong);
}

/// A file of `cases!` has a `main` of its own: under the standard harness it would pass without running anything.
#[test]
fn every_file_of_cases_runs_its_own_harness() {
    let manifest = tree::read("tests/Cargo.toml");
    let mut wrong = Vec::new();
    for source in tree::rust().into_iter().filter(|source| source.text.contains("\ncases! {")) {
        let Some(name) = source.path.strip_prefix("tests/tests/") else { continue };
        let name = name.trim_end_matches("/main.rs").trim_end_matches(".rs");
        if !manifest.contains(&format!("name = \"{name}\"\nharness = false\n")) {
            wrong.push(format!("tests/Cargo.toml: {name} needs `harness = false`"));
        }
    }
    none(&wrong);
}

#[test]
fn every_limit_is_kept_somewhere() {
    let limits = tree::read("gateway/core/src/limits.rs");
    let names: Vec<&str> =
        limits.lines().filter_map(|line| line.strip_prefix("pub const ")?.split(':').next()).collect();
    assert!(names.len() > 10, "the limits were not found");
    let users: String = tree::rust()
        .iter()
        .filter(|source| !source.is_test() && !source.path.ends_with("core/src/limits.rs"))
        .map(tree::Source::code)
        .collect();
    none(&names.into_iter().filter(|name| !users.contains(name)).map(str::to_owned).collect::<Vec<_>>());
}

#[test]
fn the_glossary_has_every_term() {
    let text = tree::read("docs/glossary.md").to_lowercase();
    const TERMS: &[&str] = &[
        "template",
        "template version",
        "base",
        "delta",
        "clone",
        "full clone",
        "identity disk",
        "data disk",
        "datastore",
        "slot",
        "rollover",
        "reset",
        "update",
        "pool",
        "icache",
        "boot set",
        "home",
        "chunk",
        "pack",
        "epoch",
        "commit record",
        "edge",
        "export",
    ];
    let missing = TERMS.iter().filter(|term| !text.contains(&format!("**{term}**")));
    none(&missing.map(|term| format!("docs/glossary.md has no **{term}**")).collect::<Vec<_>>());
}
