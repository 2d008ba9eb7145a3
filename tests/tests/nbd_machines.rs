//! Machines that keep their disk by NBD while the gateway is killed under them.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use clonegate_tests::machine::run;
use clonegate_tests::qmp::LiveMachine;
use clonegate_tests::{Gateway, cases, images, tree};

cases! {
    "qemu-system-x86_64", "apt-get", "busybox", "cpio", "depmod", "e2fsck", "grub-mkimage", "mcopy", "mke2fs", "mkfs.vfat",
    "nbd-client", "nbdcopy", "python3", "sfdisk", "zstd"
        => a_machine_that_installs_survives_a_gateway_that_is_killed_under_it;
}

/// For a machine under emulation on a host that does much else. Nothing is concluded from how long it takes.
const PATIENCE: Duration = Duration::from_secs(600);

/// The root file system in the image of the small Linux, see `tests/rig/make-linux-image.sh`.
const ROOT_AT: usize = (2 + 8) << 20;
const ROOT_BYTES: usize = 88 << 20;

/// The initramfs of the small Linux with another first process laid over it.
fn initramfs(dir: &Path, below: &Path) -> String {
    let over = dir.join("over");
    fs::create_dir(&over).unwrap();
    fs::copy(tree::root().join("tests/rig/install-init.sh"), over.join("init")).unwrap();
    let made = Command::new("sh")
        .args(["-c", "chmod 755 init && echo init | cpio --quiet -o -H newc -R 0:0"])
        .current_dir(&over)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    // The kernel wants what follows an archive to begin on a multiple of four.
    let mut whole = fs::read(below).unwrap();
    whole.resize(whole.len().next_multiple_of(4), 0);
    whole.extend(made.stdout);
    let path = dir.join("initrd");
    fs::write(&path, whole).unwrap();
    path.display().to_string()
}

/// Lets the machine go on until it says `goal` or that it failed. Whenever it is told that writes were lost, which may be any time after
/// the kill, it stops; then it is reset, as an operator would do. Says how often.
fn install_until(machine: &mut LiveMachine, goal: &str) -> usize {
    let mut resets = 0;
    loop {
        let resumes = machine.count("RESUME");
        let over = |m: &LiveMachine| m.serial().contains(goal) || m.serial().contains("INSTALL-FAIL");
        machine.until(PATIENCE, |m| over(m) || m.count("STOP") > m.count("RESUME"));
        if over(machine) {
            return resets;
        }
        resets += 1;
        machine.tell("system_reset");
        machine.tell("cont");
        machine.until(PATIENCE, |m| m.count("RESUME") > resumes);
    }
}

fn a_machine_that_installs_survives_a_gateway_that_is_killed_under_it() {
    let linux = images::linux();
    let mut gateway = Gateway::up(&["--clones", "0"]);
    gateway.cli_ok(&["template", "import", "linux", linux.disk.to_str().unwrap(), "--format", "raw"]);
    gateway.cli_ok(&["clone", "create", "pc", "--template", "linux"]);
    let initrd = initramfs(gateway.dir(), &linux.initrd);
    // The machine of the example, with the example's settings for when the gateway goes away.
    let (host, port) = (gateway.nbd().ip().to_string(), gateway.nbd().port().to_string());
    let kernel = linux.kernel.display().to_string();
    let script = tree::root().join("examples/nbd/qemu.sh").display().to_string();
    let mut machine = LiveMachine::start(
        Path::new("sh"),
        &[
            &script,
            &host,
            &port,
            "pc",
            "-m",
            "512",
            "-kernel",
            &kernel,
            "-initrd",
            &initrd,
            "-append",
            "console=ttyS0 quiet panic=1 no_timer_check",
        ],
    );
    let mut resets = 0;
    // Killed thrice: early, while it installs, and late.
    for step in [2, 9, 20] {
        resets += install_until(&mut machine, &format!("INSTALL-STEP {step}\n"));
        gateway.kill();
        gateway.start();
    }
    resets += install_until(&mut machine, "INSTALL-OK");
    let serial = machine.serial();
    assert!(serial.contains("packages=30"), "{serial}");
    let starts = serial.matches("INSTALL-START").count();
    assert!(
        starts <= resets + 1,
        "{starts} starts, {resets} resets: a machine that was told nothing goes on:\n{serial}"
    );
    println!("3 kills, {resets} resets");
    while !machine.ended() {
        std::thread::sleep(Duration::from_millis(100));
    }
    // From outside: the file system on the clone is clean, and holds what was installed.
    let copy = gateway.dir().join("pc.raw");
    run("nbdcopy", &[&format!("nbd://{}/pc", gateway.nbd()), copy.to_str().unwrap()]);
    let root = gateway.dir().join("root.ext4");
    fs::write(&root, &fs::read(&copy).unwrap()[ROOT_AT..ROOT_AT + ROOT_BYTES]).unwrap();
    run("e2fsck", &["-f", "-n", root.to_str().unwrap()]);
    let noted = run("debugfs", &["-R", "cat /state/noted", root.to_str().unwrap()]);
    assert_eq!(noted.trim(), "30");
}
