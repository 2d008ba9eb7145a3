//! DHCP servers with the settings of `examples/boot` tell each kind of machine what to boot, and a machine with nothing but its firmware
//! comes up by them.
//!
//! The whole program runs in a network namespace of its own, in which the example's interface `bt0` is made, so that the examples are
//! used as they are.

use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use clonegate_tests::harness::{self, Case};
use clonegate_tests::machine::{Firmware, run};
use clonegate_tests::{Gateway, Machine, images, programs, tree};

const CASES: &[Case] = &[
    Case {
        name: "dnsmasq_tells_each_kind_of_machine_what_to_boot",
        needs: &["dnsmasq", "ip", "python3", "unshare"],
        run: dnsmasq_tells_each_kind_of_machine_what_to_boot,
    },
    Case {
        name: "kea_tells_each_kind_of_machine_what_to_boot",
        needs: &["ip", "kea-dhcp4", "python3", "unshare"],
        run: kea_tells_each_kind_of_machine_what_to_boot,
    },
    Case {
        name: "a_machine_with_nothing_but_firmware_comes_up_by_uefi_http_boot_and_dnsmasq",
        needs: &[
            "qemu-system-x86_64",
            "/boot/ipxe.efi",
            "/usr/share/OVMF/OVMF_CODE_4M.fd",
            "apt-get",
            "busybox",
            "cpio",
            "depmod",
            "dnsmasq",
            "grub-mkimage",
            "ip",
            "mcopy",
            "mke2fs",
            "mkfs.vfat",
            "nbd-client",
            "python3",
            "sfdisk",
            "unshare",
            "zstd",
        ],
        run: a_machine_with_nothing_but_firmware_comes_up_by_uefi_http_boot_and_dnsmasq,
    },
    Case {
        name: "a_system_with_dracut_has_its_root_on_a_clone",
        needs: &[
            "CLONEGATE_LONG",
            "qemu-system-x86_64",
            "/usr/lib/ipxe/qemu/efi-virtio.rom",
            "apt-get",
            "debootstrap",
            "dnsmasq",
            "ip",
            "mke2fs",
            "sfdisk",
            "unshare",
        ],
        run: a_system_with_dracut_has_its_root_on_a_clone,
    },
];

/// Set in the namespace.
const INSIDE: &str = "CLONEGATE_TEST_NETWORK";

fn main() -> ExitCode {
    // Without the programs every case is left out: then it does not matter where.
    if std::env::var_os(INSIDE).is_some() || programs::find("unshare").is_none() {
        return harness::run(CASES);
    }
    if std::env::var_os(harness::LONG).is_some() && programs::find("debootstrap").is_some() {
        // Here, where its packages can be fetched; inside it is there already.
        images::debian();
    }
    let program = std::env::current_exe().expect("a running program has a path");
    let mut command = Command::new("unshare");
    command.args(if rustix::process::geteuid().is_root() {
        &["--net", "--"][..]
    } else {
        &["--net", "--map-root-user", "--"]
    });
    let status = command.arg(program).args(std::env::args_os().skip(1)).env(INSIDE, "1").status();
    let code = status.expect("unshare starts").code().and_then(|code| u8::try_from(code).ok());
    ExitCode::from(code.unwrap_or(1))
}

/// The network `bt0` of the examples. One at a time.
struct Site {
    dir: tempfile::TempDir,
    servers: Vec<Child>,
    _alone: MutexGuard<'static, ()>,
}

impl Site {
    /// `bt0` with a wire to `bt1`.
    fn wire() -> Self {
        let site = Self::new(&["link", "add", "bt0", "type", "veth", "peer", "name", "bt1"]);
        run("ip", &["link", "set", "bt1", "up"]);
        site
    }

    /// `bt0` is the card of a machine in QEMU, seen from outside.
    fn machine() -> Self {
        Self::new(&["tuntap", "add", "dev", "bt0", "mode", "tap"])
    }

    fn new(make: &[&str]) -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        run("ip", make);
        run("ip", &["address", "add", "10.77.0.1/24", "dev", "bt0"]);
        for name in ["lo", "bt0"] {
            run("ip", &["link", "set", name, "up"]);
        }
        Self { dir: tempfile::tempdir().unwrap(), servers: Vec::new(), _alone: alone }
    }

    fn serve(&mut self, command: &mut Command) {
        let log = std::fs::File::create(self.dir.path().join("server.log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.servers.push(command.spawn().expect("the server starts"));
    }

    /// dnsmasq with the example as it is, but for the place of its directory, and the file of leases, which is no setting of ours.
    fn serve_dnsmasq(&mut self) {
        let dir = self.dir.path().display().to_string();
        let text = tree::read("examples/boot/dnsmasq.conf").replace("/srv/tftp", &dir);
        let config = self.dir.path().join("dnsmasq.conf");
        std::fs::write(&config, format!("{text}\ndhcp-leasefile={dir}/leases\nuser=root\n")).unwrap();
        let dnsmasq = programs::find("dnsmasq").unwrap();
        self.serve(Command::new(dnsmasq).arg("--keep-in-foreground").arg("--log-facility=-").arg("-C").arg(&config));
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("server.log")).unwrap_or_default()
    }

    /// What a machine is told; asks again until the server is up.
    fn ask(&mut self, arguments: &[&str]) -> serde_json::Value {
        let script = tree::root().join("tests/rig/ask-dhcp.py");
        let begin = Instant::now();
        loop {
            let output = Command::new("python3").arg(&script).arg("bt1").args(arguments).output().unwrap();
            if output.status.success() {
                return serde_json::from_slice(&output.stdout).expect("it prints JSON");
            }
            let ended = self.servers.iter_mut().any(|server| !matches!(server.try_wait(), Ok(None)));
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(!ended && begin.elapsed() < Duration::from_secs(120), "{arguments:?}: {errors}\n{}", self.said());
        }
    }

    /// Asks as every kind of machine does.
    fn check_all(&mut self) {
        let entry = "http://10.77.0.1:8080/boot.ipxe";
        let efi = "http://10.77.0.1:8080/efi/ipxe.efi";
        let mut last = 0;
        let mut check = |site: &mut Self, arguments: &[&str], file: &str, vendor_class: &str| {
            last += 1;
            let mac = format!("52:54:00:c1:0e:{last:02x}");
            let told = site.ask(&[&[mac.as_str()], arguments].concat());
            assert_eq!(told["file"], file, "{arguments:?}: {told}\n{}", site.said());
            assert!(told["address"].as_str().unwrap().starts_with("10.77.0."), "{told}");
            if !file.starts_with("http:") {
                assert_eq!(told["next_server"], "10.77.0.1", "{arguments:?}: TFTP comes from there: {told}");
            }
            if !vendor_class.is_empty() {
                assert_eq!(told["vendor_class"], vendor_class, "{arguments:?}: {told}");
            }
        };
        check(self, &["0"], "undionly.kpxe", "");
        check(self, &["7"], "ipxe.efi", "");
        check(self, &["9"], "ipxe.efi", "");
        // Firmware ignores an offer for HTTP boot that does not call itself so.
        check(self, &["16", "HTTPClient"], efi, "HTTPClient");
        for architecture in ["0", "7", "9", "16"] {
            check(self, &[architecture, "ipxe"], entry, "");
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for server in &mut self.servers {
            // It may have ended by itself; either way nothing is left to do about a failure here.
            drop(server.kill());
            drop(server.wait());
        }
        drop(Command::new("ip").args(["link", "delete", "bt0"]).status());
    }
}

fn dnsmasq_tells_each_kind_of_machine_what_to_boot() {
    let mut site = Site::wire();
    site.serve_dnsmasq();
    site.check_all();
}

/// The chain of a site: the firmware gets an address and the URL of a program by DHCP, the program is iPXE out of `/efi/`, which asks DHCP again and
/// gets the chain entry, which knows the machine by its MAC address; kernel and initrd come out of its clone, its root by NBD.
fn a_machine_with_nothing_but_firmware_comes_up_by_uefi_http_boot_and_dnsmasq() {
    let mut site = Site::machine();
    std::fs::copy("/boot/ipxe.efi", site.dir.path().join("ipxe.efi")).unwrap();
    site.serve_dnsmasq();
    let efi = site.dir.path().display().to_string();
    let (http, nbd) = ("10.77.0.1:8080".parse().unwrap(), "10.77.0.1:10809".parse().unwrap());
    let gateway = Gateway::up_at(http, nbd, &["--clones", "1"], &[("CLONEGATE_BOOT_EFI", &efi)]);
    let image = images::linux().disk;
    gateway.cli_ok(&["template", "import", "linux", image.to_str().unwrap(), "--format", "raw"]);
    gateway.cli_ok(&["clone", "create", "pc", "--template", "linux"]);
    let args = "console=ttyS0,115200 quiet panic=5 no_timer_check clonegate.root=LABEL=CLONEROOT clonegate.nbd={nbd}";
    let kernel = ["boot.mac=52:54:00:c1:0e:77", "boot.kernel=/boot/vmlinuz", "boot.initrd=/boot/initrd"];
    gateway.cli_ok(&[&["clone", "label", "pc"][..], &kernel, &[&format!("boot.args={args}")]].concat());

    let machine = Machine::new(Firmware::Uefi).with_tap("bt0", "52:54:00:c1:0e:77").with_uefi_http_boot_only();
    let serial = machine.failing_on("LINUX-FAIL").boot("LINUX-OK", Duration::from_secs(420));
    assert!(serial.has("http://10.77.0.1:8080/efi/ipxe.efi"), "{}", serial.text);
    assert!(serial.has("starting the kernel of pc") && serial.has("mode=rw boots=1"), "{}", serial.text);
}

/// In a network of its own because dracut asks the standard port of NBD. With `CLONEGATE_LONG` alone: it takes minutes.
fn a_system_with_dracut_has_its_root_on_a_clone() {
    let image = images::debian();
    let mut site = Site::machine();
    site.serve_dnsmasq();
    let (http, nbd) = ("10.77.0.1:8080".parse().unwrap(), "10.77.0.1:10809".parse().unwrap());
    let gateway = Gateway::up_at(http, nbd, &["--clones", "1"], &[]);
    gateway.cli_ok(&["template", "import", "debian", image.to_str().unwrap(), "--format", "raw"]);
    gateway.cli_ok(&["clone", "create", "pc", "--template", "debian"]);
    let args = "boot.args=console=ttyS0,115200 quiet panic=5 no_timer_check systemd.show_status=0 ip=dhcp rd.neednet=1 netroot=nbd:10.77.0.1:pc \
                root=LABEL=DEBIANROOT rw";
    let labels = ["boot.mac=52:54:00:c1:0e:0e", "boot.kernel=/boot/vmlinuz", "boot.initrd=/boot/initramfs.img", args];
    gateway.cli_ok(&[&["clone", "label", "pc"][..], &labels].concat());
    for boots in 1..=2 {
        let network = ["-netdev", "tap,id=n0,ifname=bt0,script=no,downscript=no"];
        let card = ["-device", "virtio-net-pci,netdev=n0,bootindex=1,mac=52:54:00:c1:0e:0e", "-m", "1024"];
        let machine = Machine::new(Firmware::Bios).with(&network).with(&card);
        let serial = machine.boot("DEBIAN-OK", Duration::from_secs(600));
        let right = format!("mode=rw payload=right boots={boots} ");
        assert!(serial.line("DEBIAN-OK").is_some_and(|line| line.contains(&right)), "{}", serial.text);
    }
}

fn kea_tells_each_kind_of_machine_what_to_boot() {
    let mut site = Site::wire();
    let dir = site.dir.path().display().to_string();
    let text = tree::read("examples/boot/kea-dhcp4.json").replace("/var/lib/kea", &dir);
    let config = site.dir.path().join("kea-dhcp4.json");
    std::fs::write(&config, text).unwrap();
    let kea = programs::find("kea-dhcp4").unwrap();
    let mut command = Command::new(kea);
    command.env("KEA_PIDFILE_DIR", &dir).env("KEA_LOCKFILE_DIR", &dir).arg("-c").arg(&config);
    site.serve(&mut command);
    site.check_all();
}
