//! What boot loaders are told: by machine, by clone, by template; and what they are told when something is wrong.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clonegate_tests::machine::run;
use clonegate_tests::raw_http::{RawHttp, Reply};
use clonegate_tests::{Gateway, need, tree};

/// Asks as a client that calls the gateway `test`.
fn get(gateway: &Gateway, path: &str) -> Reply {
    RawHttp::connect(gateway.http()).request("GET", path, &[])
}

/// The script at `path`, which there must be.
fn script(gateway: &Gateway, path: &str) -> String {
    let reply = get(gateway, path);
    let text = String::from_utf8_lossy(&reply.body).into_owned();
    assert_eq!(reply.status, 200, "{path}: {text}");
    assert!(text.starts_with("#!ipxe\n"), "{path}: {text}");
    text
}

/// A gateway with the demo image as template `demo`, and clones of it by these names.
fn gateway(variables: &[(&str, &str)], clones: &[&str]) -> Gateway {
    let gateway = Gateway::up_with(&["--clones", "0", "--template", "demo"], variables);
    for clone in clones {
        gateway.cli_ok(&["clone", "create", clone, "--template", "demo"]);
    }
    gateway
}

#[test]
fn a_machine_boots_the_clone_whose_label_names_it() {
    let gateway = gateway(&[], &["pc-1", "pc-2", "pc-3"]);
    gateway.cli_ok(&["clone", "label", "pc-1", "boot.mac=52-54-00-12-34-01"]);
    gateway.cli_ok(&["clone", "label", "pc-2", "boot.uuid=4C4C4544-0042-3510-8052-B4C04F564D31"]);
    gateway.cli_ok(&["clone", "label", "pc-3", "boot.serial=ABC 7"]);
    let check = |path: &str, clone: &str| {
        let text = script(&gateway, path);
        assert!(text.contains(&format!("/v1/clones/{clone}/disk?version=")), "{path}: {text}");
    };
    check("/boot.ipxe?mac=52:54:00:12:34:01&uuid=&serial=", "pc-1");
    check("/boot/mac/5254.0012.3401.ipxe", "pc-1");
    check("/boot.ipxe?mac=52:54:00:99:99:99&uuid=4c4c4544-0042-3510-8052-b4c04f564d31&serial=", "pc-2");
    check("/boot.ipxe?mac=&uuid=&serial=abc%207", "pc-3");
    check("/boot/pc-2.ipxe", "pc-2");
    // The first question knows nothing of the machine: it is sent back to ask with what it knows.
    assert!(script(&gateway, "/boot.ipxe").contains("/boot.ipxe?mac=${netX/mac:hexhyp}"));
}

#[test]
fn labels_can_be_changed_after_a_clone_is_made() {
    let gateway = gateway(&[], &["pc"]);
    let by_mac = "/boot/mac/52-54-00-12-34-07.ipxe";
    let knows = || script(&gateway, by_mac).contains("/v1/clones/pc/disk");
    assert!(!knows());
    gateway.cli_ok(&["clone", "label", "pc", "boot.mac=52:54:00:12:34:07", "--dry-run"]);
    assert!(!gateway.cli_ok(&["clone", "show", "pc"]).contains("12:34:07"), "a dry run changes nothing");
    gateway.cli_ok(&["clone", "label", "pc", "boot.mac=52:54:00:12:34:07", "room=3"]);
    // The directory of machines may be a second old.
    clonegate_tests::gateway::until("the machine is known", knows);
    gateway.cli_ok(&["clone", "label", "pc", "--remove", "boot.mac"]);
    clonegate_tests::gateway::until("the machine is not known", || !knows());
    let shown: serde_json::Value =
        serde_json::from_str(&gateway.cli_ok(&["clone", "show", "pc", "--output", "json"])).unwrap();
    assert_eq!(shown["labels"], serde_json::json!({ "room": "3" }), "{shown}");
    for (label, why) in [
        ("boot.args=a\nshell", "control characters"),
        ("boot.mac=52:54:00:12:34", "no MAC address"),
        ("boot.kernel=vmlinuz", "absolute path"),
    ] {
        let refused = gateway.cli(&["clone", "label", "pc", label]);
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains(why), "{refused:?}");
    }
    // Two clones of one machine: whoever does that is told which is booted.
    gateway.cli_ok(&["clone", "create", "another", "--template", "demo", "--label", "boot.mac=52:54:00:12:34:08"]);
    let labelled = gateway.cli(&["clone", "label", "pc", "boot.mac=52-54-00-12-34-08"]);
    let said = String::from_utf8_lossy(&[labelled.stdout, labelled.stderr].concat()).into_owned();
    assert!(said.contains("the machine boots another"), "{said}");
    let boots_first = || script(&gateway, "/boot.ipxe?mac=52:54:00:12:34:08").contains("/v1/clones/another/disk");
    clonegate_tests::gateway::until("the machine boots the first", boots_first);
}

#[test]
fn an_unknown_machine_is_told_so_by_default() {
    let gateway = gateway(&[], &[]);
    let text = script(&gateway, "/boot.ipxe?mac=52:54:00:00:00:01&uuid=x&serial=y");
    assert!(text.contains("there is no clone for this machine"), "{text}");
    assert!(text.contains("boot.mac=52:54:00:00:00:01"), "it says what the operator is to do: {text}");
    // Whatever it said can be a label.
    let text = script(&gateway, "/boot.ipxe?mac=&uuid=4C4C4544-0042-3510-8052-B4C04F564D31&serial=AB%7C%7C7");
    assert!(text.contains("boot.uuid=4c4c4544-0042-3510-8052-b4c04f564d31 to boot"), "{text}");
    assert!(!text.contains("|| 7") && !text.contains("AB"), "what could be a command is not repeated: {text}");
    assert!(script(&gateway, "/boot.ipxe?mac=&uuid=&serial=").contains("says nothing of itself"));
    for path in ["/boot/mac/nonsense.ipxe", "/boot.ipxe?mac=52:54:00:00:00", "/boot/mac/.ipxe"] {
        let reply = get(&gateway, path);
        assert_eq!((reply.status, reply.code().as_str()), (400, "bad-mac"), "{path}");
    }
    assert_eq!(get(&gateway, "/boot/nobody.ipxe").status, 404);
    assert_eq!(get(&gateway, "/boot/mac/52-54-00-00-00-01").status, 404, "scripts end in .ipxe");
    assert_eq!(get(&gateway, "/boot.ipxe?ip=10.0.0.1").status, 400, "an unknown parameter is a mistake");
}

#[test]
fn an_unknown_machine_may_get_a_menu() {
    let gateway = gateway(&[("CLONEGATE_BOOT_UNKNOWN", "menu")], &["pc-1", "pc-2"]);
    let text = script(&gateway, "/boot/mac/52-54-00-00-00-01.ipxe");
    assert!(text.contains("\nitem pc-1 pc-1\nitem pc-2 pc-2\n"), "{text}");
    assert!(text.contains("/boot/${clone}.ipxe"), "{text}");
}

#[test]
fn a_hundred_machines_with_one_mac_get_one_clone_between_them() {
    let gateway = gateway(&[("CLONEGATE_BOOT_UNKNOWN", "create"), ("CLONEGATE_BOOT_TEMPLATE", "demo")], &[]);
    let path = "/boot.ipxe?mac=52:54:00:00:00:63&uuid=&serial=";
    let scripts: BTreeSet<String> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..100).map(|_| scope.spawn(|| script(&gateway, path))).collect();
        asking.into_iter().map(|machine| machine.join().unwrap()).collect()
    });
    assert_eq!(scripts.len(), 1, "{scripts:?}");
    let list: serde_json::Value = serde_json::from_slice(&get(&gateway, "/v1/clones").body).unwrap();
    let clones = list["items"].as_array().unwrap();
    assert_eq!(clones.len(), 1, "{list}");
    assert_eq!(clones[0]["labels"]["boot.mac"], "52:54:00:00:00:63");
    let name = clones[0]["name"].as_str().unwrap();
    assert!(scripts.first().unwrap().contains(&format!("/v1/clones/{name}/disk?version=")), "{scripts:?}");
    // It is kept for the machine: it gets the same one tomorrow.
    assert_eq!(&script(&gateway, path), scripts.first().unwrap());
}

#[test]
fn an_unknown_machine_may_get_a_clone_of_a_pool() {
    let gateway = gateway(&[("CLONEGATE_BOOT_UNKNOWN", "pool"), ("CLONEGATE_BOOT_POOL", "lab")], &[]);
    let path = |last: u8| format!("/boot/mac/52-54-00-00-00-{last:02x}.ipxe");
    assert!(script(&gateway, &path(1)).contains("no clone could be made for this machine"), "there is no pool yet");
    gateway.cli_ok(&["pool", "create", "lab", "--template", "demo", "--size", "2"]);
    let scripts: BTreeSet<String> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..20).map(|_| scope.spawn(|| script(&gateway, &path(1)))).collect();
        asking.into_iter().map(|machine| machine.join().unwrap()).collect()
    });
    assert_eq!(scripts.len(), 1, "one machine has one clone: {scripts:?}");
    let other = script(&gateway, &path(2));
    assert!(other.contains("/disk?version=") && !scripts.contains(&other), "{other}");
    let none = script(&gateway, &path(3));
    assert!(none.contains("pool-empty"), "{none}");
}

#[test]
fn a_machine_that_no_clone_can_be_made_for_reads_why() {
    let gateway = gateway(&[("CLONEGATE_BOOT_UNKNOWN", "create"), ("CLONEGATE_BOOT_TEMPLATE", "nowhere")], &[]);
    let text = script(&gateway, "/boot/mac/52-54-00-00-00-01.ipxe");
    assert!(text.contains("no clone could be made for this machine") && text.contains("unknown-template"), "{text}");
}

#[test]
fn an_administrators_template_takes_the_place_of_the_scripts() {
    let template = tree::root().join("examples/boot/boot.ipxe.template");
    let variables = [("CLONEGATE_BOOT_SCRIPT", template.to_str().unwrap())];
    let gateway = gateway(&variables, &["pc"]);
    let text = script(&gateway, "/boot/pc.ipxe");
    assert!(text.contains("kernel http://test/v1/clones/pc/files/-/vmlinuz?version="), "{text}");
    assert!(text.contains(&format!("nbdroot=test:{}/pc root=", gateway.nbd().port())), "{text}");
    assert!(text.contains("${net0/mac}"), "what is iPXE's own stays: {text}");
    assert!(!text.contains("{clone}") && !text.contains("sanboot"), "{text}");
}

#[test]
fn a_clone_that_changes_during_a_boot_is_an_error_and_no_mixture() {
    let gateway = gateway(&[], &["pc"]);
    let text = script(&gateway, "/boot/pc.ipxe");
    let url = text.split_whitespace().find(|word| word.contains("/disk?version=")).expect("the script names the disk");
    let path = url.strip_prefix("http://test").expect("as it was called").to_owned();
    let mut loader = RawHttp::connect(gateway.http());
    let mut read = |first: u32| loader.request("GET", &path, &[("Range", &format!("bytes={first}-{}", first + 511))]);
    assert_eq!(read(0).status, 206);
    let again = script(&gateway, "/boot/pc.ipxe");
    assert_eq!(text, again, "while nothing is written the script is the same");

    let mut writer = RawHttp::connect(gateway.http());
    let size = gateway_size(&gateway, "pc");
    let place = format!("bytes 4096-4607/{size}");
    let written = writer.request_with("PUT", "/v1/clones/pc/disk", &[("Content-Range", &place)], &[7; 512]);
    assert_eq!(written.status, 204);
    let refused = read(512);
    assert_eq!((refused.status, refused.code().as_str()), (412, "precondition-failed"));
    let fresh = script(&gateway, "/boot/pc.ipxe");
    assert_ne!(text, fresh, "the next boot is of the new version");

    gateway.cli_ok(&["clone", "reset", "pc"]);
    assert_ne!(fresh, script(&gateway, "/boot/pc.ipxe"), "and so is the one after a reset");
}

fn gateway_size(gateway: &Gateway, clone: &str) -> u64 {
    let shown: serde_json::Value =
        serde_json::from_str(&gateway.cli_ok(&["clone", "show", clone, "--output", "json"])).unwrap();
    shown["size"].as_u64().expect("a clone has a size")
}

#[test]
fn a_clone_that_is_deleted_during_a_boot_is_gone_and_the_machine_is_told() {
    let gateway = gateway(&[], &["pc"]);
    gateway.cli_ok(&["clone", "label", "pc", "boot.mac=52:54:00:00:00:09"]);
    let path = "/boot/mac/52-54-00-00-00-09.ipxe";
    assert!(script(&gateway, path).contains("/v1/clones/pc/disk"));
    let mut loader = RawHttp::connect(gateway.http());
    assert_eq!(loader.request("GET", "/v1/clones/pc/disk", &[("Range", "bytes=0-511")]).status, 206);
    gateway.cli_ok(&["clone", "delete", "pc"]);
    assert_eq!(loader.request("GET", "/v1/clones/pc/disk", &[("Range", "bytes=512-1023")]).status, 404);
    let text = script(&gateway, path);
    assert!(text.contains("pc is gone") || text.contains("there is no clone for this machine"), "{text}");
}

/// A raw image that is one FAT file system with these files, or nothing when the programs are not here.
fn fat_image(gateway: &Gateway, files: &[(&str, &[u8])]) -> Option<PathBuf> {
    need("mkfs.vfat")?;
    need("mcopy")?;
    let image = gateway.dir().join("fat.raw");
    std::fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
    let path = image.display().to_string();
    run("mkfs.vfat", &["-R", "2", &path]);
    for (name, bytes) in files {
        let file = gateway.dir().join(name);
        std::fs::write(&file, bytes).unwrap();
        run("mcopy", &["-i", &path, &file.display().to_string(), "::"]);
    }
    Some(image)
}

#[test]
fn an_image_without_the_kernel_that_is_expected_says_so_on_the_screen() {
    let gateway = gateway(&[], &[]);
    let kernel = vec![5; 100_000];
    let Some(image) = fat_image(&gateway, &[("vmlinuz", &kernel), ("initrd", b"small")]) else { return };
    gateway.cli_ok(&["template", "import", "fat", image.to_str().unwrap(), "--format", "raw"]);
    gateway.cli_ok(&["clone", "create", "pc", "--template", "fat"]);
    gateway.cli_ok(&["clone", "label", "pc", "boot.kernel=/vmlinux", "boot.initrd=/initrd"]);
    let text = script(&gateway, "/boot/pc.ipxe");
    assert!(text.contains("pc has no file /vmlinux") && text.contains("boot.kernel"), "{text}");
    assert!(!text.contains("\nkernel "), "nothing is tried that cannot be: {text}");

    gateway.cli_ok(&["clone", "label", "pc", "boot.kernel=/vmlinuz"]);
    let text = script(&gateway, "/boot/pc.ipxe");
    let url = text.split_whitespace().find(|word| word.contains("/vmlinuz?version=")).expect("the script names it");
    let path = url.strip_prefix("http://test").expect("as it was called").to_owned();
    assert!(get(&gateway, &path).body == kernel);
    // What is fetched after a change is not of the version that the boot began with.
    let mut writer = RawHttp::connect(gateway.http());
    let place = format!("bytes 8384512-8388607/{}", 8 << 20);
    let written = writer.request_with("PUT", "/v1/clones/pc/disk", &[("Content-Range", &place)], &[7; 4096]);
    assert_eq!(written.status, 204);
    let refused = get(&gateway, &path);
    assert_eq!((refused.status, refused.code().as_str()), (412, "precondition-failed"));
}

#[test]
fn the_files_of_a_volume_are_found_by_hand() {
    let gateway = gateway(&[], &[]);
    let Some(image) = fat_image(&gateway, &[("vmlinuz", &[5; 1000]), ("boot.efi", b"MZ")]) else { return };
    gateway.cli_ok(&["template", "import", "fat", image.to_str().unwrap(), "--format", "raw"]);
    gateway.cli_ok(&["clone", "create", "pc", "--template", "fat"]);
    for path in ["/v1/clones/pc/files", "/v1/clones/pc/files/"] {
        assert!(String::from_utf8_lossy(&get(&gateway, path).body).contains("\"file_system\":\"fat\""), "{path}");
    }
    for path in ["/v1/clones/pc/files/-", "/v1/clones/pc/files/-/", "/v1/clones/pc/files/0"] {
        assert!(String::from_utf8_lossy(&get(&gateway, path).body).contains("\"name\":\"boot.efi\""), "{path}");
    }
    let kernel = "/v1/clones/pc/files/-/vmlinuz";
    let ask = |method: &str, range: &str| RawHttp::connect(gateway.http()).request(method, kernel, &[("Range", range)]);
    let part = ask("GET", "bytes=990-2000");
    assert_eq!((part.status, part.field("content-range"), part.body.len()), (206, Some("bytes 990-999/1000"), 10));
    let head = ask("HEAD", "bytes=0-9");
    assert_eq!((head.status, head.field("content-length")), (200, Some("1000")), "a range is for GET");
    let beyond = ask("GET", "bytes=1000-");
    assert_eq!((beyond.status, beyond.code().as_str()), (416, "range-unsatisfiable"));
    assert_eq!(beyond.field("content-range"), Some("bytes */1000"));
    let efi = get(&gateway, "/v1/clones/pc/files/-/boot.efi");
    assert_eq!(efi.field("content-type"), Some("application/efi"));
    // Many EFI partitions have two reserved sectors, which the library warns of whenever it looks.
    assert!(!gateway.output().contains("fatfs"), "{}", gateway.output());
    for path in ["/../x", "/a/%2e%2e/x", "/a%00b", "/a%ffb"] {
        let reply = get(&gateway, &format!("/v1/clones/pc/files/-{path}"));
        assert_eq!((reply.status, reply.code().as_str()), (400, "bad-path"), "{path}");
    }
}

#[test]
fn nothing_but_files_of_its_directory_is_served_under_efi() {
    let outer = tempfile::tempdir().unwrap();
    let efi = outer.path().join("efi");
    std::fs::create_dir(&efi).unwrap();
    std::fs::write(efi.join("boot.efi"), "MZ").unwrap();
    std::fs::write(outer.path().join("secret"), "secret").unwrap();
    std::os::unix::fs::symlink("../secret", efi.join("link")).unwrap();
    run("mkfifo", &[efi.join("pipe").to_str().unwrap()]);
    let gateway = gateway(&[("CLONEGATE_BOOT_EFI", efi.to_str().unwrap())], &[]);
    let program = get(&gateway, "/efi/boot.efi");
    assert_eq!((program.status, program.field("content-type")), (200, Some("application/efi")));
    for path in ["link", "pipe", "../secret", "%2e%2e/secret", "..%2fsecret", "boot.efi/../../secret", "a%00b"] {
        let reply = get(&gateway, &format!("/efi/{path}"));
        assert_eq!((reply.status, reply.code().as_str()), (404, "no-such-file"), "{path}");
    }
}
