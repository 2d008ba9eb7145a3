//! What `--help` and the pages show can be typed: every verb has an example, and every example parses.

use std::collections::BTreeSet;

use clap::{Command, CommandFactory, Parser};
use clonegate::cli::Cli;
use clonegate_tests::tree;

/// The commands that do something, each with the words that lead to it.
fn verbs(command: &Command, words: &str, found: &mut Vec<(String, String)>) {
    let mut below = command.get_subcommands().filter(|sub| sub.get_name() != "help").peekable();
    if below.peek().is_none() {
        found.push((words.to_owned(), command.get_after_help().map(ToString::to_string).unwrap_or_default()));
    }
    for sub in below {
        verbs(sub, &format!("{words} {}", sub.get_name()), found);
    }
}

/// The commands of clonegate in a line of shell, without what they are piped or redirected to.
fn commands(line: &str) -> Vec<Vec<String>> {
    let words = shlex::split(line).unwrap_or_else(|| panic!("not a line of shell: {line}"));
    let parts = words.split(|word| ["|", ";", "&&"].contains(&word.as_str()));
    parts
        .map(|part| part.iter().take_while(|word| !word.starts_with(['>', '<', '#'])).cloned().collect::<Vec<_>>())
        .filter(|part| part.first().is_some_and(|word| word == "clonegate"))
        .collect()
}

/// Says which of the commands in `line` clonegate does not take.
fn refused(place: &str, line: &str, wrong: &mut Vec<String>) {
    for command in commands(line) {
        match Cli::try_parse_from(&command) {
            Ok(_) => {}
            Err(error) if !error.use_stderr() => {} // --help and --version
            Err(error) => wrong.push(format!("{place}: {}\n{error}", command.join(" "))),
        }
    }
}

#[test]
fn every_verb_shows_an_example_of_itself_that_parses() {
    let mut found = Vec::new();
    verbs(&Cli::command(), "clonegate", &mut found);
    assert!(found.len() > 40, "the commands were not found: {found:?}");
    let mut wrong = Vec::new();
    for (words, help) in &found {
        let mut lines = help.lines();
        let titled = lines.next().is_some_and(|line| line == "Example:" || line == "Examples:");
        let own = |line: &str| {
            commands(line).iter().any(|command| {
                let named = words.split(' ').collect::<Vec<_>>();
                command.len() >= named.len() && command.iter().zip(&named).all(|(a, b)| a == b)
            })
        };
        let lines: Vec<&str> = lines.collect();
        if !titled || !lines.iter().any(|line| own(line)) {
            wrong.push(format!("{words} shows no example of itself"));
        }
        for line in lines {
            refused(words, line, &mut wrong);
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_command_on_a_page_parses() {
    let mut seen = BTreeSet::new();
    let mut wrong = Vec::new();
    for page in tree::files(&[".md", ".sh"]) {
        if page.path.starts_with("docs/adr/") || page.path == "CHANGELOG.md" {
            continue;
        }
        let text = page.text.replace("\\\n", " ");
        let mut fenced = page.path.ends_with(".sh");
        for line in text.lines() {
            fenced ^= line.trim_start().starts_with("```");
            if !fenced && !line.starts_with("    ") {
                continue;
            }
            let line = line.trim().trim_start_matches("$ ");
            if line.starts_with("clonegate ") && !line.contains('…') && shlex::split(line).is_some() {
                seen.insert(line.to_owned());
                refused(&page.path, line, &mut wrong);
            }
        }
    }
    assert!(seen.len() > 20, "the commands were not found: {seen:?}");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
