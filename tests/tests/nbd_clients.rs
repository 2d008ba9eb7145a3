//! NBD clients that others wrote find what the specification promises: libnbd, QEMU's tools, fio.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use clonegate_tests::cases;
use clonegate_tests::nbd::{NbdHost, NbdHouse, NbdVolume};
use serde_json::Value;

const SIZE: u64 = 8 << 20;

cases! {
    "nbdsh" => libnbd_finds_each_option_order_and_error_as_it_should_be;
    "nbdinfo" => nbdinfo_tells_all_of_an_export;
    "nbdinfo" => nbdinfo_lists_the_exports;
    "nbdcopy" => nbdcopy_copies_out_and_in;
    "qemu-img" => qemu_img_reads_writes_compares_and_maps;
    "qemu-io" => qemu_io_patterns_are_kept;
    "fio" => fio_verifies_what_it_wrote_before_a_restart;
    "qemu-system-x86_64" => the_qemu_example_opens_the_disk;
    "python3" => the_libvirt_example_is_what_it_says;
    "virt-xml-validate" => the_libvirt_example_is_a_domain;
}

fn host() -> (NbdHost, std::sync::Arc<NbdVolume>) {
    let volume = NbdVolume::new("disk", SIZE, SIZE);
    let host = NbdHost::start(&NbdHouse::of(&[&volume, &NbdVolume::sealed("seal", SIZE, SIZE)]), |_| {});
    (host, volume)
}

fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().expect("the program starts")
}

/// Runs a program that is to succeed; gives what it printed.
fn run(program: &str, arguments: &[&str]) -> String {
    let done = output(Command::new(program).args(arguments));
    let (out, err) = (String::from_utf8_lossy(&done.stdout).into_owned(), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{program} {arguments:?}: {}\n{out}\n{err}", done.status);
    out
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}

fn tree() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the root").to_owned()
}

fn libnbd_finds_each_option_order_and_error_as_it_should_be() {
    let (host, _) = host();
    let script = tree().join("tests/nbd/cases.py");
    // The interpreter that the distribution's libnbd belongs to.
    let out = run("/usr/bin/python3", &[text(&script), &host.uri("disk"), &host.uri("seal")]);
    assert!(out.lines().filter(|line| line.starts_with("ok ")).count() >= 60, "{out}");
    assert!(out.ends_with(", 0 failed\n"), "{out}");
}

fn nbdinfo_tells_all_of_an_export() {
    let (host, _) = host();
    let told: Value = serde_json::from_str(&run("nbdinfo", &["--json", &host.uri("disk")])).unwrap();
    assert_eq!(told["protocol"], "newstyle-fixed");
    assert_eq!(told["structured"], true);
    let export = &told["exports"][0];
    assert_eq!(export["export-size"], SIZE);
    assert_eq!(export["description"], "disk, in memory, for tests");
    assert_eq!(export["block_size_maximum"], 32 << 20);
    assert_eq!(export["contexts"], serde_json::json!(["base:allocation", "clonegate:source"]));
    for can in
        ["can_cache", "can_df", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"]
    {
        assert_eq!(export[can], true, "{can}");
    }
    let sealed: Value = serde_json::from_str(&run("nbdinfo", &["--json", &host.uri("seal")])).unwrap();
    assert_eq!(sealed["exports"][0]["is_read_only"], true);
    let map: Value = serde_json::from_str(&run("nbdinfo", &["--json", "--map", &host.uri("seal")])).unwrap();
    assert_eq!(map[0]["length"], SIZE);
    assert_eq!(map[0]["type"], 0);
    let failed = output(Command::new("nbdinfo").arg(host.uri("none")));
    assert!(!failed.status.success());
    assert!(String::from_utf8_lossy(&failed.stderr).contains("No such file"), "{failed:?}");
}

fn nbdinfo_lists_the_exports() {
    let (host, _) = host();
    let told: Value = serde_json::from_str(&run("nbdinfo", &["--json", "--list", &host.uri("")])).unwrap();
    let names: Vec<_> =
        told["exports"].as_array().unwrap().iter().map(|export| export["export-name"].clone()).collect();
    assert_eq!(names, ["disk", "seal"]);
}

fn nbdcopy_copies_out_and_in() {
    let (host, volume) = host();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("copy.raw");
    run("nbdcopy", &["--connections=4", "--requests=64", &host.uri("disk"), text(&file)]);
    assert!(fs::read(&file).unwrap() == volume.bytes());
    // Half of it data, half zeroes; in, with a flush, and out again.
    let mut other: Vec<u8> = (0..SIZE / 8).flat_map(|number| (number * 3).to_le_bytes()).collect();
    other[1 << 20..5 << 20].fill(0);
    fs::write(&file, &other).unwrap();
    run("nbdcopy", &["--flush", "--connections=4", text(&file), &host.uri("disk")]);
    assert!(volume.bytes() == other);
    assert!(volume.flushes.load(std::sync::atomic::Ordering::SeqCst) > 0);
    let map: Value = serde_json::from_str(&run("nbdinfo", &["--json", "--map", &host.uri("disk")])).unwrap();
    assert!(map.as_array().unwrap().iter().any(|run| run["type"] == 3), "zeroes were told as zeroes: {map}");
    let again = dir.path().join("again.raw");
    run("nbdcopy", &[&host.uri("disk"), text(&again)]);
    assert!(fs::read(&again).unwrap() == other);
}

fn qemu_img_reads_writes_compares_and_maps() {
    let (host, volume) = host();
    let dir = tempfile::tempdir().unwrap();
    let uri = host.uri("disk");
    let info: Value = serde_json::from_str(&run("qemu-img", &["info", "--output=json", &uri])).unwrap();
    assert_eq!(info["virtual-size"], SIZE);
    let qcow = dir.path().join("copy.qcow2");
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, text(&qcow)]);
    run("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", text(&qcow), &uri]);
    let raw = dir.path().join("other.raw");
    let mut other: Vec<u8> = (0..SIZE).map(|byte| (byte * 13 / 7).to_le_bytes()[0]).collect();
    other[2 << 20..3 << 20].fill(0);
    fs::write(&raw, &other).unwrap();
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", text(&raw), &uri]);
    assert!(volume.bytes() == other);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&raw), &uri]);
    let map: Value = serde_json::from_str(&run("qemu-img", &["map", "--output=json", "-f", "raw", &uri])).unwrap();
    let zero: u64 =
        map.as_array().unwrap().iter().filter(|run| run["zero"] == true).filter_map(|run| run["length"].as_u64()).sum();
    assert_eq!(zero, 1 << 20, "{map}");
}

fn qemu_io_patterns_are_kept() {
    let (host, volume) = host();
    let script = [
        "write -P 0x11 0 64k",
        "write -P 0x22 3 4099",
        "write -z 128k 64k",
        "write -z -u 256k 64k",
        "write -f -P 0x33 512k 1M",
        "discard 600k 4k",
        "aio_write -P 0x44 2M 2M",
        "aio_write -P 0x55 4M 64k",
        "aio_flush",
        "flush",
        "read -P 0x22 3 4099",
        "read -P 0 128k 64k",
        "read -P 0 256k 64k",
        "read -P 0x33 512k 88k",
        "read -P 0 600k 4k",
        "read -P 0x44 2M 2M",
        "read -P 0x55 4M 64k",
    ];
    let mut arguments = vec!["-f", "raw"];
    script.iter().for_each(|line| arguments.extend(["-c", line]));
    let uri = host.uri("disk");
    arguments.push(&uri);
    let out = run("qemu-io", &arguments);
    assert!(!out.contains("failed") && !out.contains("error"), "{out}");
    assert_eq!(volume.bytes()[2 << 20..4 << 20], vec![0x44; 2 << 20]);
    // What may not be: a write to what is sealed, and one past the end.
    let seal = host.uri("seal");
    let refused = output(Command::new("qemu-io").args(["-f", "raw", "-c", "write 0 512", &seal]));
    assert!(!refused.status.success());
}

fn fio_verifies_what_it_wrote_before_a_restart() {
    let (mut host, volume) = host();
    let dir = tempfile::tempdir().unwrap();
    let job = |host: &NbdHost, more: &[&str]| {
        let uri = format!("--uri={}", host.uri("disk"));
        let mut arguments = vec![
            "--name=verify",
            "--thread",
            "--ioengine=nbd",
            &uri,
            "--rw=randwrite",
            "--bsrange=4k-64k",
            "--iodepth=32",
            "--size=8m",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--randrepeat=1",
            "--end_fsync=1",
        ];
        arguments.extend(more);
        let done = output(Command::new("fio").args(arguments).current_dir(dir.path()));
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
    };
    job(&host, &[]);
    job(&host, &["--do_verify=0"]);
    host.stop();
    let host = NbdHost::start(&NbdHouse::of(&[&volume]), |_| {});
    job(&host, &["--verify_only"]);
}

fn the_qemu_example_opens_the_disk() {
    let (host, _) = host();
    let script = tree().join("examples/nbd/qemu.sh");
    // The machine is not started; it is asked what it has and told to end.
    let mut machine = Command::new("sh")
        .args([text(&script), "127.0.0.1", &host.port().to_string(), "disk"])
        .args(["-S", "-display", "none", "-qmp", "stdio", "-accel", "tcg"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let questions = r#"{"execute":"qmp_capabilities"}{"execute":"query-block"}{"execute":"quit"}"#;
    std::io::Write::write_all(machine.stdin.as_mut().unwrap(), questions.as_bytes()).unwrap();
    let done = machine.wait_with_output().unwrap();
    let answers = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{answers}\n{}", String::from_utf8_lossy(&done.stderr));
    let block = answers.lines().find(|line| line.contains("virtual-size")).expect("the answer about disks");
    assert!(block.contains(&format!("\"virtual-size\": {SIZE}")) && block.contains("nbd"), "{block}");
    assert!(host.house.events().iter().any(|event| event.starts_with("attach disk")));
    drop(host);
}

fn the_libvirt_example_is_what_it_says() {
    let xml = tree().join("examples/nbd/domain.xml");
    let check = r#"
import sys, xml.etree.ElementTree as tree
disk = tree.parse(sys.argv[1]).getroot().find("devices/disk[@type='network']")
source, driver = disk.find("source"), disk.find("driver")
assert source.get("protocol") == "nbd" and source.get("name"), source.attrib
assert int(source.find("reconnect").get("delay")) >= 60
assert source.find("host").get("port") == "10809"
assert driver.get("type") == "raw" and driver.get("discard") == "unmap", driver.attrib
assert driver.get("error_policy") == "stop"
"#;
    run("/usr/bin/python3", &["-c", check, text(&xml)]);
}

fn the_libvirt_example_is_a_domain() {
    let xml = fs::read_to_string(tree().join("examples/nbd/domain.xml")).unwrap();
    // The one thing that libvirt 9.0 does not know.
    let known: String =
        xml.lines().filter(|line| !line.contains("<reconnect ")).map(|line| format!("{line}\n")).collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("domain.xml");
    fs::write(&path, known).unwrap();
    run("virt-xml-validate", &[text(&path), "domain"]);
    let asked = output(Command::new("virt-xml-validate").args([text(&tree().join("README.md")), "domain"]));
    assert!(!asked.status.success(), "it can say no");
}
