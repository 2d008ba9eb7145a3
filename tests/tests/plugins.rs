//! The walk of docs/plugins.md: each command as it stands there, in that order, with a gateway running.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clonegate_tests::Gateway;
use clonegate_tests::gateway::{command, program};
use clonegate_tests::programs::required;
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
    let real = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
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
                .env("CLONEGATE_SOURCE", root())
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
    let beside = trap.lines().filter(|line| line.contains("\"beside"));
    let shadows: Vec<Value> =
        beside.map(|line| serde_json::from_str::<Value>(line).unwrap()["shadow"][0].take()).collect();
    assert!(!shadows.is_empty() && shadows.iter().all(|s| s["plugin"] == "idea"), "the shadow was asked: {shadows:?}");
}
