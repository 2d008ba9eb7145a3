//! NBD clients that others wrote keep what they flushed while the real gateway is killed and started again.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clonegate_tests::machine::run;
use clonegate_tests::{Gateway, cases};

cases! {
    "fio" => fio_verifies_over_kills_what_it_flushed_before;
    "/dev/fuse", "nbdfuse", "umount", "mke2fs", "e2fsck", "debugfs" => a_file_system_made_by_fuse_is_clean_after_a_kill;
    "nbdsh" => a_flush_on_one_connection_covers_what_another_wrote;
    "nbdinfo" => the_list_has_clones_and_data_disks_and_what_a_flush_promises;
    "nbdinfo", "nbdcopy" => one_may_look_at_and_copy_a_clone_that_a_machine_writes_to;
}

fn gateway() -> Gateway {
    let gateway = Gateway::up(&["--clones", "0"]);
    gateway.cli_ok(&["disk", "create", "home", "64MiB"]);
    gateway
}

fn uri(gateway: &Gateway) -> String {
    format!("nbd://{}/disk/home", gateway.nbd())
}

/// Runs a script of libnbd; the first argument is `h`'s address.
fn nbdsh(script: &str, arguments: &[&str]) -> String {
    let script = format!("import nbd, sys, errno\n{script}");
    let mut all = vec!["-c", &script];
    all.extend(arguments);
    // The interpreter that the distribution's libnbd belongs to.
    run("/usr/bin/python3", &all)
}

fn fio_verifies_over_kills_what_it_flushed_before() {
    let mut gateway = gateway();
    let uri = format!("--uri={}", uri(&gateway));
    let dir = gateway.dir().to_owned();
    let job = |seed: &str, more: &[&str]| {
        let mut command = Command::new("fio");
        command.args(["--name=verify", "--thread", "--ioengine=nbd", &uri, "--rw=randwrite", "--bsrange=4k-64k"]);
        command.args(["--iodepth=32", "--size=64m", "--io_size=16m", "--verify=crc32c", "--verify_fatal=1"]);
        command.args(["--verify_state_save=0", "--end_fsync=1", seed]).args(more).current_dir(&dir);
        let done = command.stdin(Stdio::null()).output().expect("fio starts");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
    };
    for round in 1..=3 {
        let seed = format!("--randseed={round}");
        job(&seed, &["--do_verify=0"]);
        gateway.kill();
        gateway.start();
        job(&seed, &["--verify_only"]);
    }
}

/// A mount that is ended with the test.
struct Mounted<'a>(Child, &'a Path);

impl Mounted<'_> {
    fn begin<'a>(dir: &'a Path, uri: &str) -> Mounted<'a> {
        let child = Command::new("nbdfuse").arg(dir.join("disk")).arg(uri).spawn().expect("nbdfuse starts");
        let mounted = Mounted(child, dir);
        let begin = Instant::now();
        while !dir.join("disk").exists() {
            assert!(begin.elapsed() < Duration::from_secs(60), "nbdfuse does not mount");
            std::thread::sleep(Duration::from_millis(50));
        }
        mounted
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        // Nothing is left to do about a failure here.
        drop(Command::new("umount").arg(self.1).output());
        drop(self.0.wait());
    }
}

fn a_file_system_made_by_fuse_is_clean_after_a_kill() {
    let mut gateway = gateway();
    let dir = gateway.dir().join("mount");
    std::fs::create_dir(&dir).unwrap();
    let disk = dir.join("disk").display().to_string();
    let tree = gateway.dir().join("tree");
    std::fs::create_dir(&tree).unwrap();
    for number in 0..40u8 {
        std::fs::write(tree.join(format!("file-{number}")), vec![number; 100_000]).unwrap();
    }
    {
        let _mounted = Mounted::begin(&dir, &uri(&gateway));
        run("mke2fs", &["-q", "-t", "ext4", "-F", "-d", tree.to_str().unwrap(), &disk]);
        run("sync", &[&disk]);
        run("e2fsck", &["-f", "-n", &disk]);
        gateway.kill();
    }
    gateway.start();
    let _mounted = Mounted::begin(&dir, &uri(&gateway));
    run("e2fsck", &["-f", "-n", &disk]);
    for number in [0, 17, 39u8] {
        let copy = gateway.dir().join("copy");
        run("debugfs", &["-R", &format!("dump /file-{number} {}", copy.display()), &disk]);
        assert!(std::fs::read(&copy).unwrap() == vec![number; 100_000]);
    }
}

fn a_flush_on_one_connection_covers_what_another_wrote() {
    let mut gateway = gateway();
    let write = r#"
handles = [nbd.NBD() for _ in range(4)]
for h in handles:
    h.connect_uri(sys.argv[1])
assert all(h.can_multi_conn() for h in handles)
for number, h in enumerate(handles[1:]):
    h.pwrite(bytes([number + 1]) * 65536, number * 65536 + 4096)
handles[0].flush()
"#;
    nbdsh(write, &[&uri(&gateway)]);
    gateway.kill();
    gateway.start();
    let read = r#"
h = nbd.NBD()
h.connect_uri(sys.argv[1])
for number in range(3):
    assert h.pread(65536, number * 65536 + 4096) == bytes([number + 1]) * 65536, number
"#;
    nbdsh(read, &[&uri(&gateway)]);
}

fn the_list_has_clones_and_data_disks_and_what_a_flush_promises() {
    let gateway = gateway();
    gateway.cli_ok(&["clone", "create", "desk", "--template", "demo", "--durability", "object"]);
    let listed = run("nbdinfo", &["--list", "--json", &format!("nbd://{}", gateway.nbd())]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let mut told: Vec<(&str, &str)> = listed["exports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|export| (export["export-name"].as_str().unwrap(), export["description"].as_str().unwrap()))
        .collect();
    told.sort_unstable();
    assert_eq!(told.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["desk", "disk/home"]);
    assert!(told[0].1.ends_with("durability object") && told[1].1.ends_with("durability local"), "{told:?}");
}

fn one_may_look_at_and_copy_a_clone_that_a_machine_writes_to() {
    let gateway = Gateway::up(&["--clones", "1"]);
    let listed = gateway.cli_ok(&["clone", "list", "--output", "json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let name = listed[0]["name"].as_str().unwrap();
    let other: std::net::SocketAddr = ([127, 0, 0, 1], gateway.nbd().port()).into();
    let uri = format!("nbd://{other}/{name}");
    let copy = gateway.dir().join("copy.raw");
    // Another machine is another address: the loopback has many.
    let script = r#"
import socket, subprocess
def machine(source):
    s = socket.create_connection(("127.0.0.1", int(sys.argv[1])), source_address=(source, 0))
    h = nbd.NBD()
    h.set_export_name(sys.argv[2])
    h.connect_socket(s.detach())
    return h
writer, other = machine("127.0.0.7"), machine("127.0.0.8")
writer.pwrite(b"x" * 4096, 4096)
assert other.pread(4096, 4096) == b"x" * 4096
other.flush()
for write in (lambda: other.pwrite(b"y" * 4096, 4096), lambda: other.zero(4096, 4096), lambda: other.trim(4096, 4096)):
    try:
        write()
        raise AssertionError("two machines wrote")
    except nbd.Error as error:
        assert error.errnum == errno.EPERM, error
subprocess.run(["nbdinfo", sys.argv[3]], check=True, stdout=subprocess.DEVNULL)
subprocess.run(["nbdcopy", sys.argv[3], sys.argv[4]], check=True)
assert open(sys.argv[4], "rb").read()[4096:8192] == b"x" * 4096
writer.shutdown()
import time
for attempt in range(200):
    try:
        other.pwrite(b"z" * 4096, 4096)
        break
    except nbd.Error:
        time.sleep(0.05)
else:
    raise AssertionError("the first is gone, and the second may not write")
"#;
    nbdsh(script, &[&other.port().to_string(), name, &uri, copy.to_str().unwrap()]);
}
