//! A machine in QEMU whose serial line is watched for a marker.
//!
//! Always TCG: it runs wherever the tests run, nested or not. It sees this host as 10.0.2.2.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How a machine sees the host that it runs on.
pub const HOST: &str = "10.0.2.2";

/// Texts that mean that a boot has failed, whoever says them.
const FAILURES: &[&str] = &["Kernel panic", "grub rescue>", "grub>", "No bootable device", "BOOT-FAIL"];

/// Firmware of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS, with iPXE in the network card's ROM.
    Bios,
    /// OVMF.
    Uefi,
}

/// Where the firmware and iPXE of a machine are.
#[derive(Debug, Clone)]
pub struct Roms {
    /// OVMF's code and its empty variable store.
    pub ovmf: [PathBuf; 2],
    /// iPXE as an EFI program.
    pub ipxe_efi: PathBuf,
    /// iPXE as the ROM of a virtio network card; QEMU's own when absent.
    pub ipxe_rom: Option<PathBuf>,
}

impl Roms {
    /// Those of Debian's packages.
    pub fn installed() -> Self {
        let ovmf = ["/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"].map(PathBuf::from);
        Self { ovmf, ipxe_efi: "/boot/ipxe.efi".into(), ipxe_rom: None }
    }

    /// Those in a folder that `tests/rig/newer-roms.sh` has filled.
    pub fn newer(folder: &Path) -> Self {
        let ovmf = ["OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"].map(|name| folder.join(name));
        Self { ovmf, ipxe_efi: folder.join("ipxe.efi"), ipxe_rom: Some(folder.join("pxe-virtio.rom")) }
    }
}

/// A machine that has not been started.
#[derive(Debug)]
pub struct Machine {
    dir: TempDir,
    roms: Roms,
    arguments: Vec<String>,
    failures: Vec<String>,
}

impl Machine {
    /// A machine without disk and network.
    ///
    /// # Panics
    /// When there is no temporary directory, or no firmware to copy.
    pub fn new(firmware: Firmware) -> Self {
        Self::with_roms(firmware, Roms::installed())
    }

    /// As [`Machine::new`], of other firmware.
    ///
    /// # Panics
    /// As there.
    pub fn with_roms(firmware: Firmware, roms: Roms) -> Self {
        let dir = tempfile::Builder::new().prefix("clonegate-vm-").tempdir().expect("a temporary directory");
        let mut machine = Self { dir, roms, arguments: Vec::new(), failures: Vec::new() };
        match firmware {
            Firmware::Bios => machine.push(&["-M", "pc,graphics=off"]),
            Firmware::Uefi => {
                let variables = machine.dir.path().join("vars.fd");
                let [code, empty] = &machine.roms.ovmf;
                std::fs::copy(empty, &variables).expect("OVMF's variable store");
                let code = format!("if=pflash,format=raw,unit=0,readonly=on,file={}", code.display());
                let variables = format!("if=pflash,format=raw,unit=1,file={}", variables.display());
                machine.push(&["-M", "q35", "-device", "virtio-rng-pci", "-drive", &code, "-drive", &variables]);
            }
        }
        machine.failures = FAILURES.iter().map(ToString::to_string).collect();
        machine
    }

    fn push(&mut self, arguments: &[&str]) {
        self.arguments.extend(arguments.iter().map(ToString::to_string));
    }

    /// Further QEMU arguments.
    #[must_use]
    pub fn with(mut self, arguments: &[&str]) -> Self {
        self.push(arguments);
        self
    }

    /// A network card whose iPXE runs `script` (the lines after `#!ipxe`). For BIOS the card's ROM is iPXE; for UEFI a small EFI
    /// partition holds iPXE, since OVMF would not run a ROM built for BIOS.
    #[must_use]
    pub fn with_ipxe(mut self, firmware: Firmware, script: &str) -> Self {
        let network = self.script(script);
        match firmware {
            Firmware::Bios => {
                let rom = self
                    .roms
                    .ipxe_rom
                    .as_ref()
                    .map_or(String::new(), |rom| format!(",romfile={},disable-legacy=on", rom.display()));
                let card = format!("virtio-net-pci,netdev=n0,bootindex=1{rom}");
                self.push(&["-netdev", &network, "-device", &card]);
            }
            Firmware::Uefi => {
                let disk = self.efi_disk(&self.roms.ipxe_efi);
                let drive = format!("file={},format=raw,if=none,id=esp,readonly=on", disk.display());
                let card = "virtio-net-pci,netdev=n0,romfile=";
                self.push(&["-drive", &drive, "-device", "virtio-blk-pci,drive=esp,bootindex=0"]);
                self.push(&["-netdev", &network, "-device", card]);
            }
        }
        self
    }

    /// A network card with this MAC address whose iPXE, in its ROM, runs `script`.
    #[must_use]
    pub fn with_ipxe_at(mut self, mac: &str, script: &str) -> Self {
        let network = self.script(script);
        let card = format!("virtio-net-pci,netdev=n0,bootindex=1,mac={mac}");
        self.push(&["-netdev", &network, "-device", &card]);
        self
    }

    /// Writes the script, and returns the network that hands it out.
    fn script(&self, script: &str) -> String {
        let text = format!("#!ipxe\n{script}\necho BOOT-FAIL the script ended\npoweroff\n");
        std::fs::write(self.dir.path().join("boot.ipxe"), text).expect("the machine's directory is writable");
        format!("user,id=n0,tftp={},bootfile=boot.ipxe", self.dir.path().display())
    }

    /// A network card without a boot ROM.
    #[must_use]
    pub fn with_network(self) -> Self {
        self.with(&["-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile="])
    }

    /// A network card on a tap interface of the network namespace that the test runs in, without a boot ROM: DHCP there says what is booted.
    #[must_use]
    pub fn with_tap(self, interface: &str, mac: &str) -> Self {
        let network = format!("tap,id=n0,ifname={interface},script=no,downscript=no");
        let card = format!("virtio-net-pci,netdev=n0,mac={mac},romfile=");
        self.with(&["-netdev", &network, "-device", &card])
    }

    /// A UEFI machine whose firmware does not try PXE, which it does before HTTP and for a long time.
    #[must_use]
    pub fn with_uefi_http_boot_only(self) -> Self {
        ["IPv4PXESupport", "IPv6PXESupport", "IPv6Support"]
            .iter()
            .fold(self, |machine, name| machine.with(&["-fw_cfg", &format!("name=opt/org.tianocore/{name},string=n")]))
    }

    /// A UEFI machine whose firmware boots `url` by UEFI HTTP boot: an EFI program, or a disk image that becomes a RAM disk.
    #[must_use]
    pub fn with_uefi_http(self, url: &str) -> Self {
        crate::uefi::boot_from_url(&self.dir.path().join("vars.fd"), url);
        self.failing_on("failed to load Boot0099").failing_on("Error: Could not retrieve NBP").with_network()
    }

    /// Makes a FAT disk with `program` as the default EFI boot program.
    fn efi_disk(&self, program: &Path) -> PathBuf {
        let disk = self.dir.path().join("esp.img");
        let file = std::fs::File::create(&disk).expect("the machine's directory is writable");
        file.set_len(8 << 20).expect("the machine's directory has room");
        let text = disk.display().to_string();
        run("mkfs.vfat", &["-F", "16", "-s", "2", &text]);
        run("mmd", &["-i", &text, "::/EFI", "::/EFI/BOOT"]);
        run("mcopy", &["-i", &text, &program.display().to_string(), "::/EFI/BOOT/BOOTX64.EFI"]);
        disk
    }

    /// Also treats `text` on the serial line as a failure.
    #[must_use]
    pub fn failing_on(mut self, text: &str) -> Self {
        self.failures.push(text.to_owned());
        self
    }

    /// Treats `text` as harmless after all.
    #[must_use]
    pub fn not_failing_on(mut self, text: &str) -> Self {
        self.failures.retain(|known| known != text);
        self
    }

    /// Starts it and waits until the serial line shows `marker`; returns the line with it and all that came before.
    ///
    /// # Panics
    /// With the serial log, when a failure text comes first, QEMU ends, or `patience` is over.
    pub fn boot(self, marker: &str, patience: Duration) -> Serial {
        self.boot_through(marker, patience, None)
    }

    /// The same; when the serial line first shows a text, something is done while the machine goes on.
    ///
    /// # Panics
    /// As [`Self::boot`]; when the text is never shown.
    pub fn boot_and(self, at: &str, act: impl FnOnce(), marker: &str, patience: Duration) -> Serial {
        self.boot_acting(at, |_| act(), marker, patience)
    }

    /// The same; the machine stands still meanwhile, so that what is done is done before it comes any further, however long it takes.
    ///
    /// # Panics
    /// As [`Self::boot_and`].
    pub fn boot_held(self, at: &str, act: impl FnOnce(), marker: &str, patience: Duration) -> Serial {
        let act = |machine: Pid| {
            kill_process(machine, Signal::STOP).expect("our own child can be signalled");
            act();
            kill_process(machine, Signal::CONT).expect("our own child can be signalled");
        };
        self.boot_acting(at, act, marker, patience)
    }

    fn boot_acting(self, at: &str, act: impl FnOnce(Pid), marker: &str, patience: Duration) -> Serial {
        let mut act = Some(act);
        let mut once = |machine| act.take().map_or((), |act| act(machine));
        let serial = self.boot_through(marker, patience, Some((at, &mut once)));
        assert!(act.is_none(), "{at:?} was never shown:\n{}", serial.tail());
        serial
    }

    fn boot_through(self, marker: &str, patience: Duration, mut at: Option<(&str, &mut dyn FnMut(Pid))>) -> Serial {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-accel", "tcg,thread=multi", "-m", "768", "-nodefaults", "-display", "none"]);
        command.args(["-serial", "stdio", "-no-reboot"]).args(&self.arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = Running(command.spawn().expect("qemu-system-x86_64 starts"));
        let (sender, receiver) = mpsc::channel();
        let output = child.0.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>);
        let errors = child.0.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>);
        for mut pipe in [output, errors].into_iter().flatten() {
            let sender = sender.clone();
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                    if sender.send(buffer[..length].to_vec()).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut serial = Serial { text: String::new(), took: Duration::ZERO };
        let mut raw = Vec::new();
        let begin = Instant::now();
        loop {
            let left = patience.saturating_sub(begin.elapsed());
            match receiver.recv_timeout(left) {
                Ok(bytes) => raw.extend(bytes),
                Err(RecvTimeoutError::Timeout) => panic!("no {marker:?} within {patience:?}:\n{}", serial.tail()),
                Err(RecvTimeoutError::Disconnected) => panic!("QEMU ended without {marker:?}:\n{}", serial.tail()),
            }
            serial.text = plain(&raw);
            serial.took = begin.elapsed();
            if let Some((_, act)) = at.take_if(|(text, _)| serial.has(text)) {
                act(Pid::from_child(&child.0));
            }
            if serial.has(marker) {
                // The rest of its line, and whatever the guest says while it powers off.
                while let Ok(bytes) = receiver.recv_timeout(Duration::from_secs(2)) {
                    raw.extend(bytes);
                }
                serial.text = plain(&raw);
                child.end_gently();
                return serial;
            }
            if let Some(failure) = self.failures.iter().find(|text| serial.has(text)) {
                panic!("{failure:?} instead of {marker:?}:\n{}", serial.tail());
            }
        }
    }
}

/// What a machine wrote to its serial line.
#[derive(Debug)]
pub struct Serial {
    /// Without control sequences.
    pub text: String,
    /// From power-on until the marker; for reports, never asserted.
    pub took: Duration,
}

impl Serial {
    /// Whether `text` was written. A screen that is redrawn may break a line, so blanks and line ends are not compared.
    pub fn has(&self, text: &str) -> bool {
        let squeeze = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
        squeeze(&self.text).contains(&squeeze(text))
    }

    /// The first line that holds `text`.
    pub fn line(&self, text: &str) -> Option<&str> {
        self.text.lines().find(|line| line.contains(text)).map(str::trim)
    }

    fn tail(&self) -> &str {
        let from = self.text.char_indices().rev().nth(4000).map_or(0, |(at, _)| at);
        &self.text[from..]
    }
}

/// A QEMU process that does not outlive the test.
struct Running(Child);

impl Running {
    /// Lets the guest power itself off, so that its last writes go out, for a while.
    fn end_gently(&mut self) {
        for _ in 0..30 {
            if matches!(self.0.try_wait(), Ok(Some(_))) {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; either way nothing is left to do about a failure here.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// `bytes` without terminal control sequences.
fn plain(bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut characters = String::from_utf8_lossy(bytes).chars().collect::<Vec<_>>().into_iter().peekable();
    while let Some(c) = characters.next() {
        match c {
            '\u{1b}' => {
                let bracket = characters.next_if(|&c| c == '[' || c == '(' || c == ')');
                for c in characters.by_ref() {
                    if bracket != Some('[') || c.is_ascii_alphabetic() {
                        break;
                    }
                }
            }
            '\r' | '\0' => {}
            c => text.push(c),
        }
    }
    text
}

/// Runs a program that must succeed, and returns its standard output.
///
/// # Panics
/// With what it printed, when it fails.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let path = crate::programs::find(program).unwrap_or_else(|| panic!("{}", crate::programs::missing(program)));
    let output = Command::new(path).args(arguments).stdin(Stdio::null()).output().expect("the program starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {}\n{errors}", arguments.join(" "), output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}
