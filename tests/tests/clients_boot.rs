//! Machines boot from clones: QEMU with the firmware and the boot loaders that Debian ships.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use clonegate_tests::curl::curl;
use clonegate_tests::gateway::command;
use clonegate_tests::machine::{Firmware, HOST, Serial, run};
use clonegate_tests::{Gateway, Machine, cases, images, uefi};
use rustix::process::{Pid, Signal, kill_process};

cases! {
    "qemu-system-x86_64", "/usr/lib/ipxe/qemu/efi-virtio.rom", "curl" => ipxe_boots_the_demo_image_from_a_clone;
    "qemu-system-x86_64", "/usr/lib/ipxe/qemu/efi-virtio.rom", "apt-get", "busybox", "cpio", "depmod", "grub-mkimage",
    "mcopy", "mke2fs", "mkfs.vfat", "nbd-client", "python3", "sfdisk", "zstd" => ipxe_boots_a_real_linux_which_keeps_its_disk_by_nbd;
    "qemu-system-x86_64", "/usr/lib/ipxe/qemu/efi-virtio.rom", "apt-get", "busybox", "cpio", "depmod", "grub-mkimage",
    "mcopy", "mke2fs", "mkfs.vfat", "nbd-client", "python3", "sfdisk", "zstd" => a_machine_is_known_by_its_mac_and_gets_kernel_and_root_of_its_clone;
    "qemu-system-x86_64", "/boot/ipxe.efi", "/usr/share/OVMF/OVMF_CODE_4M.fd", "apt-get", "busybox", "cpio", "depmod",
    "grub-mkimage", "mcopy", "mke2fs", "mkfs.vfat", "nbd-client", "python3", "sfdisk", "zstd" => ipxe_for_uefi_boots_a_real_linux;
    "qemu-system-x86_64", "/usr/lib/grub/x86_64-efi/http.mod", "/usr/share/OVMF/OVMF_CODE_4M.fd", "apt-get", "busybox", "cpio",
    "depmod", "grub-mkimage", "mcopy", "mke2fs", "mkfs.vfat", "nbd-client", "python3", "sfdisk",
    "zstd" => uefi_http_boot_runs_grub_which_reads_kernel_and_initrd_out_of_the_volume;
    "qemu-system-x86_64", "/usr/share/OVMF/OVMF_CODE_4M.fd", "apt-get", "busybox", "cpio", "depmod",
    "grub-mkimage", "mcopy", "mke2fs", "mkfs.vfat", "nbd-client", "python3", "sfdisk", "zstd" => uefi_http_boot_makes_a_ram_disk_of_a_clone;
    "qemu-system-x86_64", "/usr/lib/x86_64-linux-gnu/qemu/block-curl.so", "apt-get", "busybox", "cpio", "depmod",
    "grub-mkimage", "mcopy", "mke2fs", "mkfs.vfat", "nbd-client", "python3", "sfdisk", "zstd" => boot_test_reports_how_far_a_clone_comes;
    "qemu-system-x86_64", "/usr/lib/ipxe/qemu/efi-virtio.rom", "apt-get", "busybox", "cpio", "depmod", "grub-mkimage",
    "mcopy", "mke2fs", "mkfs.vfat", "nbd-client", "python3", "sfdisk", "zstd" => a_gateway_that_dies_during_a_boot_costs_a_pause;
    "qemu-system-x86_64", "/usr/lib/ipxe/qemu/efi-virtio.rom", "apt-get", "busybox", "cpio", "depmod", "grub-mkimage",
    "mcopy", "mke2fs", "mkfs.vfat", "nbd-client", "python3", "sfdisk", "zstd" => a_clone_that_is_reset_or_deleted_during_a_boot_is_never_read_as_a_mixture;
    "qemu-system-x86_64", "/usr/lib/ipxe/qemu/efi-virtio.rom", "apt-get", "debootstrap", "mke2fs",
    "qemu-io", "sfdisk" => a_debian_keeps_its_root_through_a_dead_gateway_and_a_reboot_and_loses_it_by_a_reset;
    "qemu-system-x86_64", "/usr/lib/ipxe/qemu/efi-virtio.rom" => a_disk_that_ipxe_on_bios_cannot_read_is_told_of_on_the_screen;
    "qemu-system-x86_64" => boot_test_says_what_qemu_said_when_it_ends_at_once;
    "qemu-system-x86_64" => boot_test_that_is_interrupted_takes_its_machine_with_it;
}

/// For one boot on a machine that does much else. Nothing is concluded from how long it takes.
const PATIENCE: Duration = Duration::from_secs(420);

/// A gateway that has the small Linux as template `linux` and one clone of it, and the clone's name.
fn linux() -> (Gateway, String) {
    let image = images::linux().disk;
    let gateway = Gateway::up(&["--clones", "1"]);
    gateway.cli_ok(&["template", "import", "linux", image.to_str().unwrap(), "--format", "raw"]);
    gateway.cli_ok(&["clone", "create", "pc", "--template", "linux"]);
    (gateway, "pc".to_owned())
}

/// How a guest reaches the volume of a clone.
fn seen_by_guest(gateway: &Gateway, clone: &str) -> String {
    format!("http://{HOST}:{}/v1/clones/{clone}/disk", gateway.http().port())
}

/// How a guest reaches its NBD export, as the small Linux wants to be told.
fn nbd(gateway: &Gateway, clone: &str) -> String {
    format!("type=1,serial=clonegate.nbd={HOST}:{}/{clone}", gateway.nbd().port())
}

fn ipxe_boots_the_demo_image_from_a_clone() {
    let gateway = Gateway::up(&["--clones", "1"]);
    let list = curl(&[&gateway.url("/v1/clones")]).json();
    let clone = list["items"][0]["name"].as_str().expect("up made a clone").to_owned();
    let script = format!("sanboot --drive 0x80 {}", seen_by_guest(&gateway, &clone));
    let serial = Machine::new(Firmware::Bios)
        .with_ipxe(Firmware::Bios, &script)
        .boot(&clonegate::demo::expected_line(), PATIENCE);
    println!("{}", serial.text);
}

fn ipxe_boots_a_real_linux_which_keeps_its_disk_by_nbd() {
    let (gateway, clone) = linux();
    let script = format!("sanboot --drive 0x80 {}", seen_by_guest(&gateway, &clone));
    for boots in 1..=2 {
        let machine = Machine::new(Firmware::Bios).with_ipxe(Firmware::Bios, &script);
        let serial =
            machine.with(&["-smbios", &nbd(&gateway, &clone)]).failing_on("LINUX-FAIL").boot("LINUX-OK", PATIENCE);
        assert!(serial.has(&format!("mode=rw boots={boots}")), "{}", serial.text);
    }
    gateway.cli_ok(&["clone", "reset", &clone]);
    let machine = Machine::new(Firmware::Bios).with_ipxe(Firmware::Bios, &script);
    let serial = machine.with(&["-smbios", &nbd(&gateway, &clone)]).failing_on("LINUX-FAIL").boot("LINUX-OK", PATIENCE);
    assert!(serial.has("mode=rw boots=1"), "after a reset it is the template again: {}", serial.text);
}

fn a_gateway_that_dies_during_a_boot_costs_a_pause() {
    let (mut gateway, clone) = linux();
    let script = format!("chain http://{HOST}:{}/boot/{clone}.ipxe", gateway.http().port());
    let machine = Machine::new(Firmware::Bios).with_ipxe(Firmware::Bios, &script);
    let machine = machine.with(&["-smbios", &nbd(&gateway, &clone)]).failing_on("LINUX-FAIL");
    // From here GRUB reads kernel and initrd, 20 MB, through iPXE.
    let serial = machine.boot_and(
        "GRUB-UP",
        || {
            gateway.kill();
            gateway.start();
        },
        "LINUX-OK",
        PATIENCE,
    );
    assert!(serial.has("mode=rw boots=1"), "{}", serial.text);
}

fn a_clone_that_is_reset_or_deleted_during_a_boot_is_never_read_as_a_mixture() {
    let (gateway, clone) = linux();
    let chain = format!("chain http://{HOST}:{}/boot.ipxe", gateway.http().port());
    let machine = || Machine::new(Firmware::Bios).with_ipxe_at("52:54:00:c1:0e:09", &chain).failing_on("LINUX-FAIL");
    let nbd = nbd(&gateway, &clone);

    // Kernel and initrd by URL: the script sees that they are of two states, and begins again with the new one.
    let args = "boot.args=console=ttyS0,115200 quiet panic=5 no_timer_check clonegate.root=LABEL=CLONEROOT clonegate.nbd={nbd}";
    let labels = ["boot.mac=52:54:00:c1:0e:09", "boot.kernel=/boot/vmlinuz", "boot.initrd=/boot/initrd", args];
    gateway.cli_ok(&[&["clone", "label", &clone][..], &labels].concat());
    let reset = || drop(gateway.cli_ok(&["clone", "reset", &clone]));
    let serial = machine().boot_held("starting the kernel of pc", reset, "LINUX-OK", PATIENCE);
    assert!(serial.has("pc did not start from") && serial.has("trying again in 10 seconds"), "{}", serial.text);
    assert!(serial.has("mode=rw boots=1"), "{}", serial.text);

    // Its disk: whoever has begun to read cannot begin again, and gets errors rather than another disk's blocks. Which of GRUB's words
    // a failed read comes to depends on what it wanted of the disk; without a kernel it says this besides, and never when it has one.
    let failed = "you need to load the kernel first";
    gateway.cli_ok(&["clone", "label", &clone, "boot.kernel=", "boot.initrd="]);
    let reading = || machine().with(&["-smbios", &nbd]).failing_on("LINUX-OK").not_failing_on("grub>");
    reading().boot_held("GRUB-UP", reset, failed, PATIENCE);
    let serial = machine().with(&["-smbios", &nbd]).boot("LINUX-OK", PATIENCE);
    assert!(serial.has("mode=rw boots=1"), "{}", serial.text);

    let delete = || drop(gateway.cli_ok(&["clone", "delete", &clone]));
    reading().boot_held("GRUB-UP", delete, failed, PATIENCE);
    machine().boot("there is no clone for this machine", PATIENCE);
}

fn a_debian_keeps_its_root_through_a_dead_gateway_and_a_reboot_and_loses_it_by_a_reset() {
    let image = images::debian();
    let mut gateway = Gateway::up(&["--clones", "1"]);
    gateway.cli_ok(&["template", "import", "debian", image.to_str().unwrap(), "--format", "raw"]);
    gateway.cli_ok(&["clone", "create", "pc", "--template", "debian", "--lifetime", "ephemeral"]);
    let args = "boot.args=console=ttyS0,115200 quiet panic=5 no_timer_check systemd.show_status=1 ip=dhcp nbdroot={nbd} root=/dev/nbd0p1 rw";
    let labels = ["boot.mac=52:54:00:c1:0e:0d", "boot.kernel=/boot/vmlinuz", "boot.initrd=/boot/initrd.img", args];
    gateway.cli_ok(&[&["clone", "label", "pc"][..], &labels].concat());
    let chain = format!("chain http://{HOST}:{}/boot.ipxe", gateway.http().port());
    let machine = || {
        let machine = Machine::new(Firmware::Bios).with_ipxe_at("52:54:00:c1:0e:0d", &chain).with(&["-m", "1024"]);
        machine.failing_on("(initramfs)").failing_on("I/O error")
    };
    let check = |serial: &Serial, boots: u32| {
        let line = serial.line("DEBIAN-OK").unwrap_or_default();
        let right = format!("root=/dev/nbd0p1 mode=rw payload=right boots={boots} ");
        assert!(line.contains(&right), "{line}\n{}", serial.text);
    };
    check(&machine().boot("DEBIAN-OK", PATIENCE), 1);
    // The gateway dies while systemd starts from the clone: requests wait until it is there again. What the machine wrote is flushed
    // before, for of lost writes it would be told (see `nbd_machines.rs`).
    let disk = format!("nbd://{}/pc", gateway.nbd());
    let restart = || {
        run("qemu-io", &["-f", "raw", "-c", "flush", &disk]);
        gateway.kill();
        gateway.start();
    };
    let serial = machine().boot_held("Reached target local-fs.target", restart, "DEBIAN-OK", PATIENCE);
    assert!(serial.has("nbd-root-keep: keeping") && serial.has("nbd-root-keep: connected to"), "{}", serial.text);
    check(&serial, 2);
    gateway.cli_ok(&["clone", "power", "off", "pc"]);
    check(&machine().boot("DEBIAN-OK", PATIENCE), 1);
}

fn ipxe_for_uefi_boots_a_real_linux() {
    let (gateway, clone) = linux();
    let script = format!("sanboot --drive 0x80 {}", seen_by_guest(&gateway, &clone));
    let machine = Machine::new(Firmware::Uefi).with_ipxe(Firmware::Uefi, &script);
    let serial = machine.with(&["-smbios", &nbd(&gateway, &clone)]).failing_on("LINUX-FAIL").boot("LINUX-OK", PATIENCE);
    assert!(serial.has("firmware=uefi") && serial.has("mode=rw boots=1"), "{}", serial.text);
}

fn a_machine_is_known_by_its_mac_and_gets_kernel_and_root_of_its_clone() {
    let (gateway, _) = linux();
    let args = "console=ttyS0,115200 quiet panic=5 no_timer_check clonegate.root=LABEL=CLONEROOT clonegate.nbd={nbd}";
    let labels = [
        "boot.mac=52-54-00-C1-0E-07",
        "boot.kernel=/boot/vmlinuz",
        "boot.initrd=/boot/initrd",
        &format!("boot.args={args}"),
    ];
    let mut create = vec!["clone", "create", "pc-07", "--template", "linux"];
    for label in &labels {
        create.extend(["--label", label]);
    }
    gateway.cli_ok(&create);
    let chain = format!("chain http://{HOST}:{}/boot.ipxe", gateway.http().port());
    let machine = Machine::new(Firmware::Bios).with_ipxe_at("52:54:00:c1:0e:07", &chain);
    let serial = machine.failing_on("LINUX-FAIL").boot("LINUX-OK", PATIENCE);
    assert!(serial.has("starting the kernel of pc-07") && serial.has("mode=rw boots=1"), "{}", serial.text);

    // A machine that nobody knows is told so, on its screen.
    let machine = Machine::new(Firmware::Bios).with_ipxe_at("52:54:00:c1:0e:08", &chain);
    machine.boot("there is no clone for this machine", PATIENCE);
}

fn uefi_http_boot_runs_grub_which_reads_kernel_and_initrd_out_of_the_volume() {
    let image = images::linux().disk;
    let efi = tempfile::tempdir().unwrap();
    let gateway = Gateway::up_with(&["--clones", "1"], &[("CLONEGATE_BOOT_EFI", &efi.path().display().to_string())]);
    gateway.cli_ok(&["template", "import", "linux", image.to_str().unwrap(), "--format", "raw"]);
    gateway.cli_ok(&["clone", "create", "pc", "--template", "linux"]);
    let server = format!("{HOST}:{}", gateway.http().port());
    let files = format!("(http,{server})/v1/clones/pc/files/-");
    let nbd = format!("{HOST}:{}/pc", gateway.nbd().port());
    let config = format!(
        "echo GRUB-BY-HTTP\nnet_bootp\n\
         linux {files}/boot/vmlinuz console=ttyS0,115200 quiet panic=5 no_timer_check clonegate.root=LABEL=CLONEROOT clonegate.nbd={nbd}\n\
         initrd {files}/boot/initrd\necho GRUB-HAS-BOTH\nboot\necho BOOT-FAIL grub\n"
    );
    uefi::grub(&efi.path().join("grub.efi"), &config);
    let machine = Machine::new(Firmware::Uefi).with_uefi_http(&format!("http://{server}/efi/grub.efi"));
    let serial = machine.failing_on("LINUX-FAIL").boot("LINUX-OK", PATIENCE);
    assert!(serial.has("GRUB-BY-HTTP") && serial.has("GRUB-HAS-BOTH"), "{}", serial.text);
    assert!(serial.has("firmware=uefi") && serial.has("mode=rw boots=1"), "{}", serial.text);
}

fn uefi_http_boot_makes_a_ram_disk_of_a_clone() {
    let (gateway, clone) = linux();
    let url = format!("{}.img", seen_by_guest(&gateway, &clone));
    // The image is in memory twice: the firmware's, and what the system reads of it.
    let machine = Machine::new(Firmware::Uefi).with_uefi_http(&url).with(&["-m", "1280"]);
    let serial = machine.failing_on("LINUX-FAIL").failing_on("LINUX-NODISK").boot("LINUX-OK", PATIENCE);
    assert!(serial.has("firmware=uefi") && serial.has("root=/dev/pmem0p3"), "{}", serial.text);
}

/// iPXE on BIOS takes a size in 32 bits: 4 GiB are none.
fn a_disk_that_ipxe_on_bios_cannot_read_is_told_of_on_the_screen() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("large.raw");
    images::patterned(&image, 1 << 20).unwrap();
    std::fs::File::options().write(true).open(&image).unwrap().set_len(4 << 30).unwrap();
    let gateway = Gateway::up(&["--clones", "1"]);
    gateway.cli_ok(&["template", "import", "large", image.to_str().unwrap(), "--format", "raw"]);
    gateway.cli_ok(&["clone", "create", "pc", "--template", "large"]);
    let chain = format!("chain http://{HOST}:{}/boot/pc.ipxe", gateway.http().port());
    let machine = Machine::new(Firmware::Bios).with_ipxe(Firmware::Bios, &chain);
    let serial = machine.boot("Set its labels boot.kernel and boot.initrd", PATIENCE);
    assert!(serial.has("nothing of a disk whose size is a multiple of 4 GiB"), "{}", serial.text);
    assert!(!serial.has("starting pc"), "{}", serial.text);
}

fn boot_test_reports_how_far_a_clone_comes() {
    let (gateway, clone) = linux();
    let nbd = gateway.nbd().to_string();
    // Not by HTTP: QEMU's curl driver below a snapshot loses a request now and then and waits for ever, whatever the server.
    let marker = ["--marker", "LINUX-OK", "--timeout", "7m", "--output", "json"];
    let report = gateway.cli_ok(&[&["boot-test", &clone, "--via", "nbd", "--nbd", &nbd], &marker[..]].concat());
    let report: serde_json::Value = serde_json::from_str(&report).expect("the report is JSON");
    assert_eq!(report["passed"], true, "{report}");
    let stages: Vec<_> = report["reached"].as_array().unwrap().iter().map(|s| s[0].as_str().unwrap()).collect();
    assert!(stages.contains(&"boot-loader") && stages.contains(&"kernel"), "{report}");
}

/// A gateway with a clone of the demo image, and its name.
fn demo() -> (Gateway, String) {
    let gateway = Gateway::up(&["--clones", "1"]);
    let list = curl(&[&gateway.url("/v1/clones")]).json();
    let clone = list["items"][0]["name"].as_str().expect("up made a clone").to_owned();
    (gateway, clone)
}

fn boot_test_says_what_qemu_said_when_it_ends_at_once() {
    let (gateway, clone) = demo();
    let nbd = gateway.nbd().to_string();
    let output = gateway.cli(&[
        "boot-test",
        &clone,
        "--nbd",
        &nbd,
        "--accel",
        "nonsense",
        "--timeout",
        "7m",
        "--output",
        "json",
    ]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("the report is JSON");
    let why = report["why"].as_str().unwrap_or_default();
    assert!(report["passed"] == false && why.contains("QEMU ended") && why.contains("nonsense"), "{report}");
}

fn boot_test_that_is_interrupted_takes_its_machine_with_it() {
    let (gateway, clone) = demo();
    let nbd = gateway.nbd().to_string();
    let mut command = command(["boot-test", &clone, "--nbd", &nbd, "--marker", "never said", "--timeout", "7m"]);
    command.env("CLONEGATE_SERVER", gateway.url("")).stdout(Stdio::null()).stderr(Stdio::piped());
    let test = command.spawn().expect("the program starts");
    let begin = Instant::now();
    let machine = loop {
        if let Some(machine) = child_of(test.id(), "qemu") {
            break machine;
        }
        assert!(begin.elapsed() < PATIENCE, "boot-test starts no QEMU");
        std::thread::sleep(Duration::from_millis(50));
    };
    kill_process(Pid::from_child(&test), Signal::INT).expect("our own child can be signalled");
    let output = test.wait_with_output().expect("our own child can be waited for");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("interrupted"), "{said}");
    assert!(!Path::new("/proc").join(machine.to_string()).exists(), "QEMU outlives the test that started it");
}

/// The child of a process whose name begins with `name`.
fn child_of(parent: u32, name: &str) -> Option<u32> {
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).find(|pid| {
        // proc(5): the number, the name in parentheses, the state, the parent.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after = stat.split_once(" (").and_then(|(_, rest)| rest.rsplit_once(") "));
        after.is_some_and(|(comm, rest)| {
            comm.starts_with(name) && rest.split(' ').nth(1) == Some(parent.to_string().as_str())
        })
    })
}
