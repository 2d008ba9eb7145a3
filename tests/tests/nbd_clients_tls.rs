//! NBD clients that others wrote, encrypted: libnbd and QEMU, with GnuTLS on their side.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use clonegate_tests::cases;
use clonegate_tests::certificates::Certificates;
use clonegate_tests::nbd::{NbdHost, NbdHouse, NbdVolume};
use serde_json::Value;

const SIZE: u64 = 8 << 20;

cases! {
    "nbdinfo", "nbdcopy" => libnbd_talks_tls_with_a_client_certificate;
    "nbdinfo" => libnbd_in_the_clear_is_told_nothing;
    "nbdinfo" => libnbd_without_a_certificate_of_the_right_authority_gets_nothing;
    "nbdinfo" => libnbd_refuses_a_server_that_it_cannot_verify;
    "qemu-img", "qemu-io" => qemu_reads_and_writes_by_tls;
    "qemu-img" => qemu_in_the_clear_is_told_that_tls_is_required;
}

fn host(certificates: &Certificates, clients: bool) -> (NbdHost, std::sync::Arc<NbdVolume>) {
    let volume = NbdVolume::new("disk", SIZE, SIZE);
    let house = NbdHouse::of(&[&volume]);
    let tls = certificates.settings(clients, true);
    (NbdHost::start(&house, |settings| settings.tls = Some(tls)), volume)
}

fn output(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).stdin(Stdio::null()).output().expect("the program starts")
}

fn run(program: &str, arguments: &[&str]) -> String {
    let done = output(program, arguments);
    let (out, err) = (String::from_utf8_lossy(&done.stdout).into_owned(), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{program} {arguments:?}: {}\n{out}\n{err}", done.status);
    out
}

/// What a program that is to fail says.
fn refused(program: &str, arguments: &[&str]) -> String {
    let done = output(program, arguments);
    assert!(!done.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&done.stdout));
    String::from_utf8_lossy(&done.stderr).into_owned()
}

fn uri(host: &NbdHost, directory: &Path) -> String {
    format!("nbds://127.0.0.1:{}/disk?tls-certificates={}", host.port(), directory.display())
}

fn libnbd_talks_tls_with_a_client_certificate() {
    let certificates = Certificates::new();
    let (host, volume) = host(&certificates, true);
    let directory = certificates.directory(Some(&certificates));
    let uri = uri(&host, directory.path());
    let told: Value = serde_json::from_str(&run("nbdinfo", &["--json", &uri])).unwrap();
    assert_eq!(told["TLS"], true, "{told}");
    assert_eq!(told["exports"][0]["export-size"], SIZE);
    assert_eq!(told["exports"][0]["contexts"], serde_json::json!(["base:allocation", "clonegate:source"]));
    let list: Value = serde_json::from_str(&run("nbdinfo", &["--list", "--json", &uri])).unwrap();
    assert_eq!(list["exports"][0]["export-name"], "disk");
    let file = directory.path().join("copy.raw");
    let path = file.to_str().unwrap();
    run("nbdcopy", &["--connections=2", &uri, path]);
    assert!(std::fs::read(&file).unwrap() == volume.bytes());
    let other: Vec<u8> = (0..SIZE).map(|byte| (byte / 511).to_le_bytes()[0]).collect();
    std::fs::write(&file, &other).unwrap();
    run("nbdcopy", &["--flush", path, &uri]);
    assert!(volume.bytes() == other);
}

fn libnbd_in_the_clear_is_told_nothing() {
    let certificates = Certificates::new();
    let (host, _) = host(&certificates, false);
    for arguments in [&["--json"][..], &["--list"], &["--can", "connect"], &["--size"]] {
        let mut arguments = arguments.to_vec();
        let uri = host.uri("disk");
        arguments.push(&uri);
        refused("nbdinfo", &arguments);
    }
    assert_eq!(host.house.events(), Vec::<String>::new(), "nothing was opened, attached or listed");
}

fn libnbd_without_a_certificate_of_the_right_authority_gets_nothing() {
    let certificates = Certificates::new();
    let (host, _) = host(&certificates, true);
    let none = certificates.directory(None);
    let other = certificates.directory(Some(&Certificates::new()));
    for directory in [none.path(), other.path()] {
        refused("nbdinfo", &["--size", &uri(&host, directory)]);
        refused("nbdinfo", &["--list", &uri(&host, directory)]);
    }
    assert_eq!(host.house.events(), Vec::<String>::new(), "nothing was opened, attached or listed");
}

fn libnbd_refuses_a_server_that_it_cannot_verify() {
    let certificates = Certificates::new();
    let (host, _) = host(&certificates, false);
    let stranger = Certificates::new().directory(None);
    let said = refused("nbdinfo", &["--size", &uri(&host, stranger.path())]);
    assert!(said.contains("certificate"), "{said}");
    let known = certificates.directory(None);
    assert_eq!(run("nbdinfo", &["--size", &uri(&host, known.path())]).trim(), SIZE.to_string());
}

fn qemu_reads_and_writes_by_tls() {
    let certificates = Certificates::new();
    let (host, volume) = host(&certificates, true);
    let directory = certificates.directory(Some(&certificates));
    let credentials = format!("tls-creds-x509,id=t,endpoint=client,dir={}", directory.path().display());
    let disk = format!("driver=nbd,host=127.0.0.1,port={},export=disk,tls-creds=t", host.port());
    let copy = directory.path().join("copy.raw");
    let copy = copy.to_str().unwrap();
    run("qemu-img", &["convert", "--object", &credentials, "--image-opts", &disk, "-O", "raw", copy]);
    assert!(std::fs::read(copy).unwrap() == volume.bytes());
    let script = ["write -P 0x5a 1M 1M", "flush", "read -P 0x5a 1M 1M"];
    let mut arguments = vec!["--object", &credentials, "--image-opts", &disk];
    script.iter().for_each(|line| arguments.extend(["-c", line]));
    let said = run("qemu-io", &arguments);
    assert!(!said.contains("failed"), "{said}");
    assert_eq!(volume.bytes()[1 << 20..2 << 20], vec![0x5a; 1 << 20]);
}

fn qemu_in_the_clear_is_told_that_tls_is_required() {
    let certificates = Certificates::new();
    let (host, _) = host(&certificates, false);
    let said = refused("qemu-img", &["info", &host.uri("disk")]);
    assert!(said.contains("TLS"), "{said}");
    assert_eq!(host.house.events(), Vec::<String>::new(), "nothing was opened, attached or listed");
}
