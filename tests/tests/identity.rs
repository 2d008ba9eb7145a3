//! Identity disks and seeds of the real program: stable, renewed when asked, encrypted with a key, gone with their clone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clonegate_tests::Gateway;
use clonegate_tests::machine::run;
use clonegate_tests::programs::need;
use clonegate_tests::raw_http::{RawHttp, Reply};
use clonegate_tests::tree;
use serde_json::{Value, json};

fn get(gateway: &Gateway, path: &str) -> Reply {
    RawHttp::connect(gateway.http()).request("GET", path, &[])
}

fn text(gateway: &Gateway, path: &str) -> String {
    let reply = get(gateway, path);
    assert_eq!(reply.status, 200, "{path}");
    String::from_utf8(reply.body).expect("it is text")
}

/// The JSON of a seed file, whatever it says first.
fn seed(gateway: &Gateway, clone: &str, file: &str) -> Value {
    let text = text(gateway, &format!("/seed/{clone}/{file}"));
    serde_json::from_str(text.trim_start_matches("#cloud-config\n")).expect("it is JSON")
}

fn disk(gateway: &Gateway, clone: &str) -> Vec<u8> {
    let reply = get(gateway, &format!("/v1/clones/{clone}/identity"));
    assert_eq!((reply.status, reply.body.len()), (200, 4 << 20));
    reply.body
}

fn json_of(gateway: &Gateway, arguments: &[&str]) -> Value {
    serde_json::from_str(&gateway.cli_ok(&[arguments, &["--output", "json"]].concat())).expect("it is JSON")
}

fn put(gateway: &Gateway, path: &str, body: &Value) -> Reply {
    let headers = [("Content-Type", "application/json")];
    RawHttp::connect(gateway.http()).request_with("PUT", path, &headers, body.to_string().as_bytes())
}

/// The stored identities.
fn records(gateway: &Gateway) -> Vec<PathBuf> {
    let dir = gateway.data().join("home/identities");
    fs::read_dir(dir).map_or_else(|_| Vec::new(), |dir| dir.map(|entry| entry.unwrap().path()).collect())
}

fn lab() -> String {
    tree::root().join("examples/identity/lab.toml").display().to_string()
}

#[test]
fn an_identity_is_the_same_after_reset_and_kill_and_another_when_asked() {
    let mut gateway = Gateway::up(&["--clones", "2"]);
    // Without a word said, each clone is itself.
    let (one, two) = (seed(&gateway, "demo-001", "meta-data"), seed(&gateway, "demo-002", "meta-data"));
    assert_eq!(one["local-hostname"], "demo-001");
    assert_ne!(one["instance-id"], two["instance-id"]);
    let first = json_of(&gateway, &["clone", "identity", "set", "demo-001", "--spec", &lab()]);
    assert_eq!((&first["hostname"], &first["generation"]), (&json!("demo-001.lab.example"), &json!(1)));
    let before = disk(&gateway, "demo-001");
    gateway.cli_ok(&["clone", "reset", "demo-001"]);
    gateway.kill();
    gateway.start();
    assert!(disk(&gateway, "demo-001") == before, "the same byte for byte");
    let again = json_of(&gateway, &["clone", "identity", "show", "demo-001"]);
    assert_eq!(again["ssh_host_key"], first["ssh_host_key"]);

    // A dry run says what it would be and does nothing.
    let planned = json_of(&gateway, &["clone", "identity", "renew", "demo-001", "--dry-run"]);
    assert_eq!((&planned["generation"], &planned["dry_run"]), (&json!(2), &json!(true)));
    assert!(disk(&gateway, "demo-001") == before);
    let kept = json_of(&gateway, &["clone", "identity", "renew", "demo-001", "--keep-host-keys"]);
    for (field, same) in [("ssh_host_key", true), ("mac", true), ("instance_id", false), ("machine_id", false)] {
        assert_eq!(kept[field] == first[field], same, "{field}");
    }
    let other = json_of(&gateway, &["clone", "identity", "renew", "demo-001", "--new-mac"]);
    for (field, same) in [("ssh_host_key", false), ("mac", false), ("instance_id", false), ("spec", true)] {
        assert_eq!(other[field] == kept[field], same, "{field}");
    }
    assert!(disk(&gateway, "demo-001") != before);
    assert_eq!(records(&gateway).len(), 1, "old secrets do not stay");
    gateway.cli_ok(&["clone", "identity", "clear", "demo-001"]);
    assert_eq!(seed(&gateway, "demo-001", "meta-data"), one);
    assert!(records(&gateway).is_empty());
}

#[test]
fn what_a_template_says_is_given_to_its_new_clones_and_goes_with_them() {
    let gateway = Gateway::up(&["--clones", "1"]);
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJoGLd0qB1dMzNYcRWAbyZWkIcmDIpgHXHZ/Wy5v9hAb lab";
    gateway.cli_ok(&["template", "identity", "set", "demo", "--hostname", "{name}.lab", "--key", key]);
    gateway.cli_ok(&["clone", "create", "lab", "--template", "demo", "--count", "2"]);
    let (one, two) = (seed(&gateway, "lab-001", "vendor-data"), seed(&gateway, "lab-002", "vendor-data"));
    assert_ne!(one["ssh_keys"], two["ssh_keys"], "no two machines have one host key");
    let meta = seed(&gateway, "lab-002", "meta-data");
    assert_eq!((&meta["local-hostname"], &meta["public-keys"][0]), (&json!("lab-002.lab"), &json!(key)));
    assert_eq!(seed(&gateway, "demo-001", "meta-data")["local-hostname"], "demo-001", "older clones keep theirs");
    // What a request says wins over the template.
    gateway.cli_ok(&["clone", "create", "own", "--template", "demo", "--identity", &lab()]);
    assert_eq!(seed(&gateway, "own", "meta-data")["local-hostname"], "own.lab.example");
    // A name that makes no host name stops the order before anything is made.
    gateway.cli_ok(&["template", "identity", "set", "demo", "--spec", &lab().replace("lab.toml", "windows.toml")]);
    let refused = gateway.cli(&["clone", "create", "a-name-that-is-too-long", "--template", "demo"]);
    assert_eq!(refused.status.code(), Some(2), "{}", String::from_utf8_lossy(&refused.stderr));
    assert_eq!(json_of(&gateway, &["clone", "list"]).as_array().unwrap().len(), 4);
    gateway.cli_ok(&["clone", "delete", "lab-001", "lab-002", "own"]);
    assert_eq!(records(&gateway).len(), 1, "the template's alone is left");
    gateway.cli_ok(&["template", "identity", "clear", "demo"]);
    assert!(records(&gateway).is_empty());
    gateway.cli_ok(&["fsck"]);
}

#[test]
fn secrets_are_encrypted_with_the_key_of_the_configuration() {
    let keys = tempfile::tempdir().unwrap();
    let file = keys.path().join("identity.key");
    fs::write(&file, format!("{}\n", "5a".repeat(32))).unwrap();
    let mut gateway = Gateway::up_with(&["--clones", "1"], &[("CLONEGATE_IDENTITY_KEY_FILE", file.to_str().unwrap())]);
    let hash = "$6$saltsalt$qFmFH.bQmmtXzyBY0s9v7Oicd2z4XSIecDzlB5KiA2";
    gateway.cli_ok(&["clone", "identity", "set", "demo-001", "--user", "anna", "--password-hash", hash]);
    let view = json_of(&gateway, &["clone", "identity", "show", "demo-001"]);
    assert_eq!((&view["kept"], &view["spec"]["users"][0]["password_hash"]), (&json!("encrypted"), &json!("stored")));
    let stored = fs::read(&records(&gateway)[0]).unwrap();
    let holds = |word: &str| stored.windows(word.len()).any(|part| part == word.as_bytes());
    assert!(!holds(hash) && !holds("anna") && !holds("host_key"));
    // A spec that was shown can be given back: the hash that is stored stays.
    gateway.cli_ok(&["clone", "identity", "set", "demo-001", "--hostname", "other"]);
    assert_eq!(seed(&gateway, "demo-001", "vendor-data")["users"][1]["hashed_passwd"], hash);
    // With a new key in front, what is there is still read.
    fs::write(&file, format!("{}\n{}\n", "6b".repeat(32), "5a".repeat(32))).unwrap();
    gateway.interrupt();
    gateway.start();
    assert_eq!(seed(&gateway, "demo-001", "meta-data")["local-hostname"], "other");
    // Without its key it is refused, and nothing else is.
    fs::write(&file, format!("{}\n", "6b".repeat(32))).unwrap();
    gateway.interrupt();
    gateway.start();
    let refused = get(&gateway, "/seed/demo-001/meta-data");
    assert_eq!((refused.status, refused.code().as_str()), (403, "no-identity-key"));
    gateway.cli_ok(&["clone", "show", "demo-001"]);
}

#[test]
fn without_a_key_it_says_that_it_is_plain() {
    let gateway = Gateway::up(&["--clones", "1"]);
    let view = json_of(&gateway, &["clone", "identity", "renew", "demo-001"]);
    assert_eq!(view["kept"], "plain");
    assert!(view["notes"][0].as_str().unwrap().contains("identity.key_file"), "{view}");
    assert!(gateway.output().contains("stored plain"), "{}", gateway.output());
}

#[test]
fn a_wrong_identity_is_refused_by_its_field_and_changes_nothing() {
    let gateway = Gateway::up(&["--clones", "1"]);
    let path = "/v1/clones/demo-001/identity-spec";
    let before = disk(&gateway, "demo-001");
    for (spec, field) in [
        (json!({ "hostname": "a\nb" }), "hostname"),
        (json!({ "users": [{ "name": "anna", "password_hash": "secret" }] }), "users.password_hash"),
        (json!({ "users": [{ "name": "anna", "password_hash": "stored" }] }), "users.password_hash"),
        (json!({ "user_data": "x".repeat(65 * 1024) }), "user_data"),
        (json!({ "authorized_keys": vec!["ssh-rsa AAAA"; 65] }), "authorized_keys"),
    ] {
        let reply = put(&gateway, path, &json!({ "spec": spec }));
        let problem: Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!((reply.status, &problem["code"], &problem["object"]), (400, &json!("bad-identity"), &json!(field)));
    }
    assert_eq!(put(&gateway, path, &json!({ "spec": { "hostnam": "a" } })).status, 400, "an unknown field");
    assert_eq!(put(&gateway, "/v1/clones/nobody/identity-spec", &json!({ "spec": {} })).status, 404);
    assert!(disk(&gateway, "demo-001") == before && records(&gateway).is_empty());
    for (path, code) in [
        ("/seed/demo-001/network-config", "no-such-seed"),
        ("/seed/demo-001/passwd", "no-such-seed"),
        ("/seed/nobody/meta-data", "unknown-clone"),
    ] {
        let reply = get(&gateway, path);
        assert_eq!((reply.status, reply.code().as_str()), (404, code), "{path}");
    }
}

/// A file of an identity disk, by mtools.
fn in_image(image: &Path, path: &str) -> String {
    run("mtype", &["-i", &image.display().to_string(), &format!("::{path}")])
}

#[test]
fn the_tools_of_others_read_the_disk() {
    if ["mtype", "fsck.vfat", "nbdcopy", "ssh-keygen", "python3"].iter().any(|program| need(program).is_none()) {
        return;
    }
    let gateway = Gateway::up(&["--clones", "1"]);
    gateway.cli_ok(&["clone", "identity", "set", "demo-001", "--spec", &lab()]);
    let image = gateway.dir().join("identity.img");
    // By NBD, read-only, the same bytes as by HTTP.
    run("nbdcopy", &[&format!("nbd://{}/demo-001@identity", gateway.nbd()), &image.display().to_string()]);
    assert!(fs::read(&image).unwrap() == disk(&gateway, "demo-001"));
    let refused =
        Command::new("nbdcopy").arg(&image).arg(format!("nbd://{}/demo-001@identity", gateway.nbd())).output().unwrap();
    assert!(!refused.status.success(), "nobody writes to it");
    for format in ["nocloud", "config-drive"] {
        gateway.cli_ok(&["clone", "identity", "set", "demo-001", "--format", format]);
        fs::write(&image, disk(&gateway, "demo-001")).unwrap();
        run("fsck.vfat", &["-n", &image.display().to_string()]);
    }
    let vendor: Value = serde_json::from_str(&in_image(&image, "/openstack/latest/vendor_data.json")).unwrap();
    let config: Value =
        serde_json::from_str(vendor["cloud-init"].as_str().unwrap().trim_start_matches("#cloud-config\n")).unwrap();
    let key = gateway.dir().join("host_key");
    fs::write(&key, config["ssh_keys"]["ed25519_private"].as_str().unwrap()).unwrap();
    run("chmod", &["600", &key.display().to_string()]);
    let public = run("ssh-keygen", &["-y", "-f", &key.display().to_string()]);
    assert_eq!(public.trim(), config["ssh_keys"]["ed25519_public"].as_str().unwrap(), "OpenSSH takes the private key");
    let listed = json_of(&gateway, &["clone", "identity", "show", "demo-001"]);
    let print = run("ssh-keygen", &["-l", "-f", &key.display().to_string()]);
    assert!(print.contains(listed["fingerprint"].as_str().unwrap()), "{print}");
    gateway.cli_ok(&["clone", "identity", "set", "demo-001", "--spec", &lab().replace("lab.toml", "windows.toml")]);
    fs::write(&image, disk(&gateway, "demo-001")).unwrap();
    let answers = gateway.dir().join("unattend.xml");
    fs::write(&answers, in_image(&image, "/unattend.xml")).unwrap();
    let names = "import sys, xml.etree.ElementTree as e; n='{urn:schemas-microsoft-com:unattend}'; r=e.parse(sys.argv[1]); \
                 print(r.find(f'.//{n}ComputerName').text, r.find(f'.//{n}RegisteredOrganization').text)";
    assert_eq!(run("python3", &["-c", names, &answers.display().to_string()]).trim(), "demo-001 Example & Co");
}
