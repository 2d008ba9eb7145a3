//! The real cloud-init of Debian takes its identity from a clone's identity disk, and from its seed by HTTP.

use std::time::Duration;

use clonegate_tests::machine::{Firmware, HOST, Serial};
use clonegate_tests::{Gateway, Machine, cases, cloud, tree};
use serde_json::Value;

cases! {
    "qemu-system-x86_64", "debootstrap", "mke2fs", "zstd" => cloud_init_takes_an_identity_from_the_disk_and_by_http;
}

/// A whole Debian with Python, interpreted twice, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(900);

/// Boots a clone whose root is its volume by NBD, and returns what it says when cloud-init is done.
fn boot(gateway: &Gateway, image: &cloud::CloudImage, clone: &str, disks: &[&str], options: &str) -> Serial {
    let mut machine = Machine::new(Firmware::Bios);
    let append = format!(
        "console=ttyS0,115200 quiet panic=5 no_timer_check root=LABEL=CLOUDROOT rw systemd.show_status=0 cloud.users=anna,debian {options}"
    );
    let (kernel, initrd) = (image.kernel.display().to_string(), image.initrd.display().to_string());
    machine = machine.with(&["-kernel", &kernel, "-initrd", &initrd, "-append", &append]);
    for disk in disks {
        machine = machine.with(&["-drive", disk]);
    }
    let root = format!("file=nbd://{}/{clone},format=raw,if=virtio", gateway.nbd());
    machine = machine.with(&["-drive", &root, "-netdev", "user,id=n0"]);
    let mac = identity(gateway, clone)["mac"].as_str().unwrap().to_owned();
    let card = format!("virtio-net-pci,netdev=n0,romfile=,mac={mac}");
    let serial = machine.with(&["-device", &card]).failing_on("(initramfs)").boot("CLOUD-DONE", PATIENCE);
    println!("{}: {:?}", if options.is_empty() { "disk" } else { options }, serial.took);
    for line in serial.text.lines().filter(|line| line.contains("CLOUD-")) {
        println!("{line}");
    }
    serial
}

fn identity(gateway: &Gateway, clone: &str) -> Value {
    serde_json::from_str(&gateway.cli_ok(&["clone", "identity", "show", clone, "--output", "json"])).unwrap()
}

/// What the guest has become is what the identity says.
fn check(gateway: &Gateway, serial: &Serial, clone: &str) {
    let said = identity(gateway, clone);
    let fact = |name: &str| said[name].as_str().unwrap_or_default().to_owned();
    let key = fact("ssh_host_key");
    let (key, _) = key.rsplit_once(' ').unwrap();
    let users_key = said["spec"]["users"][0]["authorized_keys"][0].as_str().unwrap();
    let default_key = said["spec"]["authorized_keys"][0].as_str().unwrap();
    for line in [
        // The host name is the first part of the fully qualified name.
        format!("CLOUD-HOST {}\n", fact("hostname").split('.').next().unwrap()),
        format!("CLOUD-INSTANCE {}\n", fact("instance_id")),
        format!("CLOUD-MACHINE-ID {}\n", fact("machine_id")),
        format!("CLOUD-HOST-KEY {key}\n"),
        "CLOUD-USER anna:x:".to_owned(),
        format!("CLOUD-KEY anna {users_key}\n"),
        format!("CLOUD-KEY debian {default_key}\n"),
        "CLOUD-PASSWORD anna:$y$j9T$".to_owned(),
        "CLOUD-USER-DATA".to_owned(),
        "CLOUD-DONE errors=\n".to_owned(),
    ] {
        assert!(serial.text.contains(&line), "{line:?} is missing:\n{}", serial.text);
    }
}

fn cloud_init_takes_an_identity_from_the_disk_and_by_http() {
    let image = cloud::image();
    let gateway = Gateway::up(&["--clones", "1"]);
    gateway.cli_ok(&["template", "import", "debian", image.root.to_str().unwrap(), "--format", "raw"]);
    // The example, with a network of its own.
    let example = tree::read("examples/identity/lab.toml");
    let network = "\n[[network.interfaces]]\naddresses = [\"10.0.2.77/24\"]\ngateway4 = \"10.0.2.2\"\n";
    let spec = gateway.dir().join("spec.toml");
    std::fs::write(&spec, example + network).unwrap();
    let spec = spec.display().to_string();
    gateway.cli_ok(&["clone", "create", "pc", "--template", "debian", "--identity", &spec]);
    let disk = format!("file=nbd://{}/pc@identity,format=raw,if=virtio,readonly=on", gateway.nbd());
    let serial = boot(&gateway, &image, "pc", &[&disk], "");
    check(&gateway, &serial, "pc");
    assert!(serial.text.contains("CLOUD-SOURCE DataSourceNoCloud"), "{}", serial.text);
    assert!(serial.text.contains("10.0.2.77/24"), "the network is as the identity says: {}", serial.text);

    // By HTTP, on a clone that was never started: this cloud-init (22.4) asks for no network-config that way.
    gateway.cli_ok(&[
        "clone",
        "create",
        "web",
        "--template",
        "debian",
        "--identity",
        &format!("{}/examples/identity/lab.toml", tree::root().display()),
    ]);
    let seed = format!("ds=nocloud-net;s=http://{HOST}:{}/seed/web/", gateway.http().port());
    let serial = boot(&gateway, &image, "web", &[], &seed);
    check(&gateway, &serial, "web");
    assert!(serial.text.contains("CLOUD-SOURCE DataSourceNoCloudNet"), "{}", serial.text);
}
