//! Data disks of the real program: what is written outlives everything but its deletion.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use clonegate_tests::Gateway;
use clonegate_tests::images::pattern;
use clonegate_tests::machine::run;
use clonegate_tests::programs::need;
use clonegate_tests::raw_http::RawHttp;
use serde_json::Value;

const SIZE: u64 = 20 << 30;

fn read(gateway: &Gateway, disk: &str, at: u64, length: usize) -> Vec<u8> {
    let range = format!("bytes={at}-{}", at + length as u64 - 1);
    let reply = RawHttp::connect(gateway.http()).request("GET", &format!("/v1/disks/{disk}"), &[("Range", &range)]);
    assert_eq!(reply.status, 206, "{}", String::from_utf8_lossy(&reply.body));
    reply.body
}

fn write(gateway: &Gateway, disk: &str, at: u64, data: &[u8]) {
    let range = format!("bytes {at}-{}/{SIZE}", at + data.len() as u64 - 1);
    let headers = [("Content-Range", range.as_str())];
    let reply = RawHttp::connect(gateway.http()).request_with("PUT", &format!("/v1/disks/{disk}"), &headers, data);
    assert_eq!(reply.status, 204, "{}", String::from_utf8_lossy(&reply.body));
}

fn show(gateway: &Gateway, disk: &str) -> Value {
    serde_json::from_str(&gateway.cli_ok(&["disk", "show", disk, "--output", "json"])).unwrap()
}

fn refused(output: &Output, exit: i32, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text}");
    }
}

fn allocated(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| {
            let meta = entry.metadata().unwrap();
            if meta.is_dir() { allocated(&entry.path()) } else { meta.blocks() * 512 }
        })
        .sum()
}

#[test]
fn a_disk_goes_from_machine_to_machine_over_kill_reset_and_deletion() {
    let mut gateway = Gateway::up(&["--clones", "3"]);
    let store = gateway.data().join("store");
    let before = allocated(&store);
    gateway.cli_ok(&["disk", "create", "home-anna", "20GiB", "--clone", "demo-001"]);
    let far = SIZE - (1 << 20);
    let (front, back) = (pattern(0, 1 << 20), pattern(far, 1 << 20));
    write(&gateway, "home-anna", 0, &front);
    write(&gateway, "home-anna", far, &back);
    let grown = allocated(&store) - before;
    assert!(grown < 64 << 20, "a disk of 20 GiB with 2 MiB in it takes {grown} bytes");
    gateway.kill();
    gateway.start();
    let intact = |gateway: &Gateway, when: &str| {
        assert!(read(gateway, "home-anna", 0, front.len()) == front, "{when}");
        assert!(read(gateway, "home-anna", far, back.len()) == back, "{when}");
        assert_eq!(read(gateway, "home-anna", 5 << 30, 4096), vec![0; 4096], "{when}");
    };
    intact(&gateway, "after kill -9");
    gateway.cli_ok(&["clone", "reset", "demo-001"]);
    intact(&gateway, "after a reset of its clone");
    // Attached twice is refused, with who has it.
    refused(
        &gateway.cli(&["disk", "attach", "home-anna", "demo-002"]),
        4,
        &["demo-001 has it", "disk detach home-anna"],
    );
    refused(&gateway.cli(&["disk", "delete", "home-anna"]), 4, &["demo-001"]);
    gateway.cli_ok(&["disk", "detach", "home-anna"]);
    gateway.cli_ok(&["disk", "attach", "home-anna", "demo-002"]);
    gateway.kill();
    gateway.start();
    assert_eq!(show(&gateway, "home-anna")["clone"], "demo-002");
    intact(&gateway, "on another clone, after kill -9");
    gateway.cli_ok(&["clone", "delete", "demo-002"]);
    assert_eq!(show(&gateway, "home-anna")["state"], "free");
    intact(&gateway, "after its clone was deleted");
    gateway.cli_ok(&["disk", "create", "scratch", "1GiB", "--clone", "demo-003", "--delete-with-clone"]);
    gateway.cli_ok(&["clone", "delete", "demo-003"]);
    refused(&gateway.cli(&["disk", "show", "scratch"]), 3, &["scratch"]);
    gateway.cli_ok(&["disk", "delete", "home-anna"]);
    refused(&gateway.cli(&["disk", "show", "home-anna"]), 3, &["home-anna"]);
    gateway.cli_ok(&["fsck"]);
}

#[test]
fn an_archived_disk_is_served_to_nobody_until_it_is_attached_again() {
    let mut gateway = Gateway::up(&["--clones", "2"]);
    gateway.cli_ok(&["disk", "create", "project", "20GiB", "--clone", "demo-001"]);
    let data = pattern(4096, 256 << 10);
    write(&gateway, "project", 4096, &data);
    gateway.cli_ok(&["disk", "archive", "project", "--dry-run"]);
    assert_eq!(show(&gateway, "project")["state"], "attached", "a dry run does nothing");
    gateway.cli_ok(&["disk", "archive", "project"]);
    // All of it is in the store: the gateway's own journal is not needed any more.
    gateway.kill();
    fs::remove_dir_all(gateway.data().join("journal")).unwrap();
    gateway.start();
    let reply = RawHttp::connect(gateway.http()).request("GET", "/v1/disks/project", &[("Range", "bytes=0-1")]);
    assert_eq!((reply.status, reply.code().as_str()), (409, "archived"));
    assert!(show(&gateway, "project")["archived_ms"].is_u64());
    gateway.cli_ok(&["clone", "delete", "demo-001"]);
    gateway.cli_ok(&["disk", "attach", "project", "demo-002"]);
    assert!(read(&gateway, "project", 4096, data.len()) == data);
    assert_eq!(show(&gateway, "project")["archived_ms"], Value::Null);
}

/// The interpreter that the distribution's libnbd belongs to.
const PYTHON: &str = "/usr/bin/python3";

fn script(lines: &str) -> String {
    format!("import nbd, sys\nh = nbd.NBD()\nh.connect_uri(sys.argv[1])\n{lines}")
}

fn nbdsh(uri: &str, lines: &str) -> String {
    run(PYTHON, &["-c", &script(lines), uri])
}

#[test]
fn nbd_and_http_see_one_disk_and_a_machine_that_has_it_open_keeps_it() {
    if need("nbdcopy").is_none() || need("nbdsh").is_none() {
        return;
    }
    let gateway = Gateway::up(&["--clones", "1"]);
    gateway.cli_ok(&["disk", "create", "data", "20GiB", "--clone", "demo-001"]);
    let uri = format!("nbd://{}/disk/data", gateway.nbd());
    let list = run("nbdinfo", &["--list", &format!("nbd://{}", gateway.nbd())]);
    assert!(list.contains("export=\"disk/data\"") && list.contains("data disk of demo-001"), "{list}");
    nbdsh(&uri, "h.pwrite(b'by nbd' * 1000, 1 << 30, nbd.CMD_FLAG_FUA)");
    assert_eq!(read(&gateway, "data", 1 << 30, 6000), b"by nbd".repeat(1000));
    write(&gateway, "data", 2 << 30, b"by http");
    let got = nbdsh(&uri, "print(h.pread(7, 2 << 30))");
    assert!(got.contains("by http"), "{got}");
    // While a machine has it open, it is neither detached nor put away.
    let mut machine = Command::new(PYTHON);
    machine.args(["-c", &script("h.pwrite(b'x', 0)\nprint('open', flush=True)\nsys.stdin.readline()"), &uri]);
    let mut machine = machine.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(machine.stdout.take().unwrap()), &mut line).unwrap();
    assert_eq!(line.trim(), "open");
    for verb in ["detach", "archive"] {
        refused(&gateway.cli(&["disk", verb, "data"]), 4, &["127.0.0.1 has it open"]);
    }
    drop(machine.stdin.take());
    machine.wait().unwrap();
}
