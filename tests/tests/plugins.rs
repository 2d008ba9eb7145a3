//! The walk of docs/plugins.md: each command as it stands there, in that order, with a gateway running.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clonegate_tests::Gateway;
use clonegate_tests::gateway::{command, program};
use clonegate_tests::programs::{find, required};
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A `cargo` for `PATH` that builds for wasm32 with whatever toolchain is there; none: no toolchain.
fn cargo_shim(bin: &Path) -> Option<()> {
    let target = "wasm32-unknown-unknown";
    let says = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let has = |sysroot: String, path: &str| Path::new(&sysroot).join(path).exists();
    // By its whole path: a bare name would find the shim, which would run itself for ever.
    let real = std::env::var("CARGO").ok().or_else(|| find("cargo").map(|path| path.display().to_string()))?;
    let wasm = if says("rustc", &["--print", "sysroot"]).is_some_and(|s| has(s, &format!("lib/rustlib/{target}"))) {
        format!("exec '{real}' \"$@\"")
    } else if says("/usr/bin/rustc", &["--print", "sysroot"]).is_some_and(|s| has(s, "lib/rustlib/src/rust/library"))
        && Path::new("/usr/bin/wasm-ld").exists()
    {
        "exec env -u RUSTUP_TOOLCHAIN -u CARGO -u RUSTC_WRAPPER PATH=/usr/bin:/bin RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 \
         CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=wasm-ld /usr/bin/cargo \"$@\" -Zbuild-std=std,panic_abort"
            .to_owned()
    } else {
        return None;
    };
    let text = format!("#!/bin/sh\ncase \"$*\" in *{target}*) {wasm} ;; *) exec '{real}' \"$@\" ;; esac\n");
    executable(&bin.join("cargo"), &text);
    Some(())
}

fn executable(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A fenced block of the page, and the comment right above it.
fn blocks(page: &str) -> Vec<(String, String, String)> {
    let (mut found, mut above, mut open) = (Vec::new(), String::new(), None);
    for line in page.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(language)) => open = Some((language.to_owned(), String::new())),
            (Some(_), Some(_)) => {
                let (language, text) = open.take().unwrap();
                found.push((std::mem::take(&mut above), language, text));
            }
            (Some((_, text)), None) => {
                text.push_str(line);
                text.push('\n');
            }
            (None, None) if line.starts_with("<!--") => above = line.trim_matches(['<', '>', '!', '-', ' ']).to_owned(),
            (None, None) => {}
        }
    }
    found
}

#[test]
fn the_first_plugin_of_the_page_is_the_one_that_new_writes() {
    let page = fs::read_to_string(root().join("docs/plugins.md")).unwrap();
    let (_, _, shown) = blocks(&page).into_iter().find(|(above, ..)| above == "scaffold").unwrap();
    let scaffold = fs::read_to_string(root().join("gateway/policy-host/src/scaffold/lib.rs")).unwrap();
    assert!(scaffold.starts_with(&shown), "docs/plugins.md and gateway/policy-host/src/scaffold/lib.rs differ");
    let lines = shown.lines().filter(|line| !line.trim().is_empty() && line.trim() != "}").count();
    assert!(lines <= 10, "{lines} lines");
}

/// Somebody who has the program and no source of it, in a directory that belongs to a workspace of somebody else.
#[test]
fn a_new_plugin_passes_its_own_tests_with_nothing_but_the_program() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("Cargo.toml"), "[workspace]\nmembers = []\n").unwrap();
    let new = |arguments: &[&str]| {
        let output = command(["plugin", "new"]).args(arguments).current_dir(home.path()).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    };
    let (code, said) = new(&["least-full"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("least-full/src/lib.rs\n") && said.contains("next: cd least-full && cargo test"), "{said}");
    for (arguments, exit, says) in [
        (&["least-full"][..], 4, "least-full: there is something of that name already"),
        (&["7-up"], 2, "cannot be the name of a plugin"),
        (&["other", "--sdk", "nowhere"], 2, "nowhere: the SDK is not in this directory"),
    ] {
        let (code, said) = new(arguments);
        assert_eq!(code, Some(exit), "{arguments:?}: {said}");
        assert!(said.contains(says), "{arguments:?}: {said}");
    }
    let mut there: Vec<_> = fs::read_dir(home.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    there.sort();
    assert_eq!(there, ["Cargo.toml", "least-full"], "a refusal leaves nothing behind");

    let crate_directory = home.path().join("least-full");
    // The lock of this project, so that nothing is fetched and what was tested is what is built.
    fs::copy(root().join("Cargo.lock"), crate_directory.join("Cargo.lock")).unwrap();
    let cargo = |arguments: &[&str]| {
        let output = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()))
            .args(arguments)
            .current_dir(&crate_directory)
            .env("CARGO_TARGET_DIR", root().join("target/plugins/new"))
            .env_remove("RUSTFLAGS")
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&said));
        String::from_utf8_lossy(&said).into_owned()
    };
    let said = cargo(&["test", "--offline"]);
    assert!(said.contains("the_base_with_the_fewest_clones_is_taken ... ok"), "{said}");
    assert!(!said.contains("warning"), "{said}");
    cargo(&["fmt", "--all", "--check"]);
}

#[test]
fn every_configuration_of_the_page_is_accepted() {
    let page = fs::read_to_string(root().join("docs/plugins.md")).unwrap();
    let home = tempfile::tempdir().unwrap();
    let configurations: Vec<_> = blocks(&page).into_iter().filter(|(_, language, _)| language == "toml").collect();
    assert!(configurations.len() >= 2);
    for (_, _, policy) in configurations {
        let (data, journal) = (home.path().display().to_string(), home.path().join("journal").display().to_string());
        let file = home.path().join("clonegate.toml");
        fs::write(&file, format!("home = 'file://{data}'\n[journal]\npath = '{journal}'\n{policy}")).unwrap();
        let output = command(["config", "check", "--config"]).arg(&file).output().unwrap();
        assert!(output.status.success(), "{policy}\n{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn every_command_of_the_page_does_what_it_says() {
    if !required() {
        println!("skipped: it builds for minutes; runs with CLONEGATE_REQUIRE_CLIENTS=1");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let bin = home.path().join("bin");
    fs::create_dir(&bin).unwrap();
    cargo_shim(&bin).expect("needs a wasm32 toolchain (Debian packages rustc-web, cargo-web, rust-web-src, lld)");
    std::os::unix::fs::symlink(program(), bin.join("clonegate")).unwrap();
    let page = fs::read_to_string(root().join("docs/plugins.md")).unwrap();
    let (.., configuration) = blocks(&page).into_iter().find(|(_, language, _)| language == "toml").unwrap();
    let chain = configuration.lines().find_map(|line| line.strip_prefix("placement = ")).unwrap();
    let gateway = Gateway::up_with(&[], &[("CLONEGATE_POLICY_PLACEMENT", chain)]);
    let target = root().join("target/plugins/walk");
    let mut directory = home.path().to_owned();
    let mut commands = 0;
    for (above, language, text) in blocks(&page) {
        if let Some(file) = above.strip_prefix("file: ") {
            fs::write(directory.join(file), &text).unwrap();
        }
        if language != "sh" {
            continue;
        }
        for line in text.lines() {
            let (command, expect) = line.split_once(" # exit ").unwrap_or((line, "0"));
            if let Some(to) = command.strip_prefix("cd ") {
                directory = directory.join(to);
                // The lock of this project, so that the crate is built with what was tested; and what was built before is kept.
                fs::copy(root().join("Cargo.lock"), directory.join("Cargo.lock")).unwrap();
                fs::create_dir_all(&target).unwrap();
                std::os::unix::fs::symlink(&target, directory.join("target")).unwrap();
                continue;
            }
            let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
            let output = Command::new("sh")
                .args(["-c", command])
                .current_dir(&directory)
                .env("PATH", path)
                .env("CLONEGATE_SERVER", gateway.url(""))
                .env_remove("CARGO_TARGET_DIR")
                .env_remove("RUSTFLAGS")
                .output()
                .unwrap();
            let said =
                format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            let code = output.status.code().unwrap_or(-1);
            assert!(expect.split(" or ").any(|e| e.parse() == Ok(code)), "{command}: exit {code}\n{said}");
            commands += 1;
        }
    }
    assert!(commands >= 20, "{commands} commands");
    let plugins = gateway.cli_ok(&["plugin", "list", "--output", "json"]);
    assert!(plugins.contains("least-full"), "{plugins}");
    let trap = gateway.cli_ok(&["plugin", "decisions", "--limit", "1000"]);
    // On a machine that is busy enough the time is up first.
    assert!(trap.contains("out-of-fuel") || trap.contains("time-out"), "the looping version was asked, and ended");
    assert!(
        trap.contains("panicked at src/lib.rs:10:9: nobody thought of oops"),
        "the panic is in the log of its decision"
    );
    let beside = trap.lines().filter(|line| line.contains("\"beside"));
    let shadows: Vec<Value> =
        beside.map(|line| serde_json::from_str::<Value>(line).unwrap()["shadow"][0].take()).collect();
    assert!(!shadows.is_empty() && shadows.iter().all(|s| s["plugin"] == "idea"), "the shadow was asked: {shadows:?}");
}
