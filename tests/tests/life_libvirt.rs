//! The libvirt hook, called as libvirt calls it, against a running gateway.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use clonegate_tests::cases;
use clonegate_tests::gateway::Gateway;
use clonegate_tests::raw_http::RawHttp;
use clonegate_tests::tree;

cases! {
    "curl" => libvirts_power_events_reset_what_is_ephemeral_and_a_migration_does_not;
}

const XML: &str = "<domain type='kvm'><name>vm1</name><devices>
  <disk type='network' device='disk'>
    <source protocol='nbd' name='pc-001'><host name='127.0.0.1' port='10809'/></source>
  </disk>
  <disk type='network' device='disk'>
    <source protocol='nbd' name='disk/home'><host name='127.0.0.1' port='10809'/></source>
  </disk>
</devices></domain>";

fn hook(gateway: &Gateway, server: Option<&str>, arguments: &[&str]) -> Output {
    let mut child = Command::new(tree::root().join("examples/libvirt/qemu"))
        .args(arguments)
        .env("CLONEGATE_SERVER", server.map_or_else(|| gateway.url(""), str::to_owned))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(XML.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn read(gateway: &Gateway) -> Vec<u8> {
    let range = ("Range", "bytes=8192-8195");
    RawHttp::connect(gateway.http()).request("GET", "/v1/clones/pc-001/disk", &[range]).body
}

fn write(gateway: &Gateway) {
    let range = ("Content-Range", "bytes 8192-8195/16777216");
    let reply = RawHttp::connect(gateway.http()).request_with("PUT", "/v1/clones/pc-001/disk", &[range], b"mine");
    assert_eq!(reply.status, 204);
}

fn libvirts_power_events_reset_what_is_ephemeral_and_a_migration_does_not() {
    let gateway = Gateway::up(&[]);
    gateway.cli_ok(&["clone", "create", "pc", "--count", "1", "--template", "demo", "--lifetime", "ephemeral"]);
    gateway.cli_ok(&["disk", "create", "home", "1MiB"]);
    write(&gateway);
    for arguments in [
        ["vm1", "started", "begin", "-"],
        ["vm1", "stopped", "end", "-"],
        ["vm1", "release", "end", "migrated"],
        ["vm1", "release", "end", "saved"],
        ["vm1", "prepare", "begin", "-"],
    ] {
        let said = hook(&gateway, None, &arguments);
        assert!(said.status.success(), "{arguments:?}: {said:?}");
        assert_eq!(read(&gateway), b"mine", "{arguments:?} drops nothing");
    }
    let off = hook(&gateway, None, &["vm1", "release", "end", "-"]);
    assert!(off.status.success() && off.stderr.is_empty(), "{off:?}");
    assert_eq!(read(&gateway), [0; 4], "switched off, it is its base again");
    let nobody = format!("http://{}", clonegate_tests::gateway::free_address());
    assert!(hook(&gateway, Some(&nobody), &["vm1", "release", "end", "-"]).status.success(), "a stop is never held up");
    assert!(!hook(&gateway, Some(&nobody), &["vm1", "prepare", "begin", "-"]).status.success());
}
