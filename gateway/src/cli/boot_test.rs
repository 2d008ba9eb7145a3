//! `clonegate boot-test CLONE`: starts a machine from a clone in QEMU on this host and says how far it came.

use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use clonegate_core::{Error, ErrorKind, Result};
use serde::Serialize;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use url::Url;

use super::Session;
use super::failure::Failure;
use super::output::{self, Form};
use crate::lifecycle::views::CloneView;

/// Bytes of the serial line that are kept; the rest of a machine that talks without end is not looked at.
const SERIAL_BYTES_MAX: usize = 4 << 20;
/// Bytes of what QEMU itself says that are kept.
const QEMU_WORDS_BYTES_MAX: u64 = 4096;
/// How QEMU's user network calls this host.
const HOST_OF_GUEST: &str = "10.0.2.2";
const QEMU: &str = "qemu-system-x86_64";

/// Texts on a serial line by which a stage is known, in the order of a boot.
const STAGES: &[(&str, &[&str])] = &[
    ("boot-loader", &["iPXE ", "GRUB", "systemd-boot", "ISOLINUX", "SYSLINUX", "Booting `", "CLONEGATE DEMO"]),
    (
        "kernel",
        &[
            "Linux version ",
            "Run /init",
            "Begin: Loading essential drivers",
            "systemd[1]:",
            "Reached target",
            "LINUX-UP",
        ],
    ),
    ("login", &["login: "]),
];
/// Texts that end a boot.
const FAILURES: &[&str] =
    &["Kernel panic", "grub rescue>", "No bootable device", "Boot Failed", "(initramfs)", "did not start from"];

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  clonegate boot-test desk-001\n  clonegate boot-test desk-001 --via ipxe --firmware uefi\n  clonegate boot-test golden --marker 'Reached target Multi-User' --timeout 10m"
)]
pub(super) struct BootTest {
    /// The clone; the test leaves no trace on it unless it boots by iPXE from a network disk that it writes to
    clone: String,
    /// Text on the serial line that means success; without it a kernel, or the demo image's own word
    #[arg(long)]
    marker: Option<String>,
    /// How the machine gets at the clone
    #[arg(long, value_enum, default_value = "nbd")]
    via: Via,
    /// Firmware of the machine
    #[arg(long, value_enum, default_value = "bios")]
    firmware: Firmware,
    /// Address of the gateway's NBD server; port 10809 of the host of --server when it is not said
    #[arg(long, value_name = "HOST:PORT")]
    nbd: Option<String>,
    /// Memory of the machine, MiB
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(64..=65536))]
    memory: u32,
    /// How QEMU runs it: tcg works everywhere, kvm is fast where it works
    #[arg(long, default_value = "tcg")]
    accel: String,
    /// How long it may take
    #[arg(long, default_value = "5m", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Write the serial line to this file
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Via {
    /// QEMU reads the clone over HTTP; the machine cannot write to its disk
    Http,
    /// iPXE in the machine runs the gateway's boot script
    Ipxe,
    /// QEMU reads the clone over NBD; writes go to a temporary file
    Nbd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Firmware {
    /// SeaBIOS
    Bios,
    /// OVMF
    Uefi,
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Report {
    clone: String,
    via: Via,
    firmware: Firmware,
    /// Whether the marker was seen.
    passed: bool,
    /// Stages with the seconds from power-on.
    reached: Vec<(String, f64)>,
    seconds: f64,
    /// Why it did not pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    /// The last lines of the serial line.
    last_lines: Vec<String>,
}

pub(super) async fn run(test: BootTest, session: &Session) -> Result<(), Failure> {
    let path = format!("clones/{}", session.segment(&test.clone));
    let clone: CloneView = session.client()?.get(&path).await?;
    let dir = tempfile::Builder::new().prefix("clonegate-boot-").tempdir().map_err(no_room)?;
    let arguments = machine(&test, &clone, &session.server, dir.path())?;
    let report = watch(&test, clone.name, arguments, &dir).await?;
    match session.form {
        Form::Json => output::json(&report),
        Form::Table => show(&report),
    }
    if report.passed {
        return Ok(());
    }
    let why = report.why.unwrap_or_default();
    Err(Failure { exit: 1, code: "boot-failed".to_owned(), text: format!("{}: the boot failed: {why}", test.clone) })
}

fn no_room(error: std::io::Error) -> Error {
    Error::unavailable("no-temporary-directory", "a temporary directory cannot be written").because(error)
}

/// QEMU's arguments for the machine.
fn machine(test: &BootTest, clone: &CloneView, server: &str, dir: &Path) -> Result<Vec<String>> {
    let mut arguments: Vec<String> =
        ["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"].map(str::to_owned).into();
    let mut push = |items: &[&str]| arguments.extend(items.iter().map(ToString::to_string));
    push(&["-accel", &test.accel, "-m", &test.memory.to_string()]);
    match test.firmware {
        Firmware::Bios => push(&["-M", "pc,graphics=off"]),
        Firmware::Uefi => {
            let variables = dir.join("variables.fd");
            const VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
            std::fs::copy(VARIABLES, &variables).map_err(|e| {
                Error::unavailable("no-firmware", "the UEFI firmware is not here")
                    .on(VARIABLES)
                    .because(e)
                    .hint("install the Debian package ovmf")
            })?;
            let code = "if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd";
            let variables = format!("if=pflash,format=raw,unit=1,file={}", option(&variables.display().to_string()));
            push(&["-M", "q35", "-device", "virtio-rng-pci", "-drive", code, "-drive", &variables]);
        }
    }
    let server = server.trim_end_matches('/');
    match test.via {
        // Read-only: under a temporary overlay QEMU's HTTP driver was seen to hang.
        Via::Http => {
            let url = option(&format!("{server}{}", clone.disk));
            let drive = format!("driver=raw,file.driver=http,file.url={url},file.timeout=60");
            push(&["-drive", &format!("{drive},if=virtio,readonly=on")]);
        }
        Via::Nbd => {
            let place = test.nbd.clone().map_or_else(|| nbd_of(server), Ok)?;
            let address = option(&format!("nbd://{place}/{}", clone.name));
            push(&["-drive", &format!("file={address},format=raw,if=virtio,snapshot=on")]);
        }
        Via::Ipxe => {
            let script = format!("#!ipxe\nchain {}/boot/{}.ipxe || exit 1\n", as_guest(server)?, clone.name);
            std::fs::write(dir.join("boot.ipxe"), script).map_err(no_room)?;
            let network = format!("user,id=n0,tftp={},bootfile=boot.ipxe", option(&dir.display().to_string()));
            match test.firmware {
                Firmware::Bios => push(&["-netdev", &network, "-device", "virtio-net-pci,netdev=n0,bootindex=1"]),
                Firmware::Uefi => {
                    let disk = dir.join("esp.img");
                    efi_partition(&disk)?;
                    let drive =
                        format!("file={},format=raw,if=none,id=esp,readonly=on", option(&disk.display().to_string()));
                    push(&["-drive", &drive, "-device", "virtio-blk-pci,drive=esp,bootindex=0"]);
                    push(&["-netdev", &network, "-device", "virtio-net-pci,netdev=n0,romfile="]);
                }
            }
        }
    }
    Ok(arguments)
}

/// A value in a list of QEMU options, where a comma would end it.
fn option(value: &str) -> String {
    value.replace(',', ",,")
}

/// Where a gateway usually has NBD.
fn nbd_of(server: &str) -> Result<String> {
    let url = Url::parse(server).map_err(|_| bad_server(server))?;
    Ok(format!("{}:10809", url.host_str().ok_or_else(|| bad_server(server))?))
}

fn bad_server(server: &str) -> Error {
    Error::invalid("bad-server", "this is no URL of a gateway").on(server.to_owned())
}

/// The URL by which a machine in QEMU's user network reaches a server of this host.
fn as_guest(server: &str) -> Result<String> {
    let wrong = || bad_server(server);
    let mut url = Url::parse(server).map_err(|_| wrong())?;
    let host = url.host_str().ok_or_else(wrong)?.trim_matches(['[', ']']);
    if url.scheme() == "https" {
        return Err(Error::invalid(
            "bad-server",
            "iPXE trusts no certificate of yours, so that it cannot boot by HTTPS",
        )
        .on(server.to_owned())
        .hint("name the port of plain HTTP: --server http://…"));
    }
    let local = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    if local {
        url.set_host(Some(HOST_OF_GUEST)).map_err(|_| wrong())?;
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// A FAT disk whose default boot program is Debian's iPXE.
fn efi_partition(disk: &Path) -> Result<()> {
    const IPXE: &str = "/boot/ipxe.efi";
    let missing = |e: std::io::Error| {
        Error::unavailable("no-ipxe", "iPXE for UEFI is not here")
            .on(IPXE)
            .because(e)
            .hint("install the Debian package ipxe")
    };
    let program = std::fs::read(IPXE).map_err(missing)?;
    let make = || -> std::io::Result<()> {
        let file = std::fs::File::options().read(true).write(true).create(true).truncate(true).open(disk)?;
        file.set_len(16 << 20)?;
        fatfs::format_volume(&file, fatfs::FormatVolumeOptions::new())?;
        let system = fatfs::FileSystem::new(&file, fatfs::FsOptions::new())?;
        let dir = system.root_dir().create_dir("EFI")?.create_dir("BOOT")?;
        dir.create_file("BOOTX64.EFI")?.write_all(&program)
    };
    make().map_err(no_room)
}

/// What is read off the serial line.
#[derive(Debug, Default)]
struct Serial {
    raw: Vec<u8>,
    reached: Vec<(String, f64)>,
}

impl Serial {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.raw).replace(['\r', '\0'], "")
    }

    fn has(&self, text: &str) -> bool {
        // A redrawn screen breaks lines anywhere.
        let squeeze = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
        squeeze(&self.text()).contains(&squeeze(text))
    }

    fn note_stages(&mut self, seconds: f64) {
        let text = self.text();
        for (stage, signs) in STAGES {
            let known = self.reached.iter().any(|(name, _)| name == stage);
            if !known && signs.iter().any(|sign| text.contains(sign)) {
                self.reached.push(((*stage).to_owned(), seconds));
            }
        }
    }

    /// Whether it has come as far as was asked, or without a marker to a kernel.
    fn passed(&self, marker: Option<&str>) -> bool {
        match marker {
            Some(marker) => self.has(marker),
            None => {
                let demo = String::from_utf8_lossy(&self.raw).contains("CLONEGATE DEMO OK");
                demo || self.reached.iter().any(|(stage, _)| stage == "kernel" || stage == "login")
            }
        }
    }

    /// What the gateway's boot script said last, which a boot menu or the firmware may have pushed off the last lines.
    fn script_said(&self) -> Option<String> {
        let text = self.text();
        let said = text.lines().filter_map(|line| line.trim().strip_prefix("clonegate: "));
        let said: Vec<_> = said.filter(|line| !line.starts_with("starting ")).collect();
        let last = said.get(said.len().saturating_sub(2)..).filter(|lines| !lines.is_empty())?;
        Some(last.join(" ").chars().take(400).collect())
    }

    fn last_lines(&self) -> Vec<String> {
        let text = self.text();
        let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        lines.iter().skip(lines.len().saturating_sub(8)).map(|line| line.chars().take(200).collect()).collect()
    }
}

async fn watch(test: &BootTest, clone: String, arguments: Vec<String>, dir: &TempDir) -> Result<Report> {
    let mut command = Command::new(QEMU);
    command.args(arguments).current_dir(dir.path()).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Before there is a machine that could be left behind.
    let stopped = stopped()?;
    let mut child = command.spawn().map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::new(ErrorKind::Unavailable, "no-qemu", "QEMU is not installed")
            .on(QEMU)
            .hint("install the Debian packages qemu-system-x86 and qemu-block-extra"),
        _ => Error::unavailable("no-qemu", "QEMU does not start").because(e),
    })?;
    let begin = Instant::now();
    let mut serial = Serial::default();
    let why = tokio::select! {
        followed = tokio::time::timeout(test.timeout, follow(test, &mut child, &mut serial, begin)) => match followed {
            Ok(why) => why,
            Err(_) => Some(format!("no success within {}", humantime::format_duration(test.timeout))),
        },
        why = stopped => Some(why),
    };
    // Whatever came of it, the machine does not outlive the test.
    child.kill().await.map_err(|e| Error::unavailable("qemu-stays", "QEMU cannot be ended").because(e))?;
    if let Some(file) = &test.log {
        std::fs::write(file, &serial.raw).map_err(|e| {
            Error::unavailable("no-log", "the serial line cannot be written there")
                .on(file.display().to_string())
                .because(e)
        })?;
    }
    let why = why.map(|why| match serial.script_said() {
        Some(said) => format!("{why}; its boot script said: {said}"),
        None => why,
    });
    Ok(Report {
        clone,
        via: test.via,
        firmware: test.firmware,
        passed: why.is_none(),
        seconds: begin.elapsed().as_secs_f64(),
        last_lines: serial.last_lines(),
        reached: serial.reached,
        why,
    })
}

/// Ctrl-C, or the request to end that a service manager or a job runner sends.
fn stopped() -> Result<impl Future<Output = String>> {
    let broken = |e| Error::internal("no-signals", "signals cannot be waited for").because(e);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(broken)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(broken)?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        "it was interrupted".to_owned()
    })
}

/// How QEMU ended, in its own words where it has any.
async fn ended(child: &mut Child, said: &[u8]) -> String {
    let how = match child.wait().await {
        Ok(status) if status.success() => "the machine powered off".to_owned(),
        Ok(status) => format!("QEMU ended ({status})"),
        Err(e) => format!("QEMU ended ({e})"),
    };
    match String::from_utf8_lossy(said).trim() {
        "" => how,
        said => format!("{how}: {said}"),
    }
}

/// Reads the serial line until the boot has succeeded (`None`) or failed (why).
async fn follow(test: &BootTest, child: &mut Child, serial: &mut Serial, begin: Instant) -> Option<String> {
    let (Some(mut output), Some(mut errors)) = (child.stdout.take(), child.stderr.take()) else {
        return Some("QEMU has no serial line".to_owned());
    };
    let mut said = Vec::new();
    let mut says_more = true;
    let (mut buffer, mut error_buffer) = ([0; 4096], [0; 1024]);
    loop {
        tokio::select! {
            read = output.read(&mut buffer) => match read {
                Ok(length @ 1..) => serial.raw.extend_from_slice(&buffer[..length]),
                _ => {
                    // What it says and that it ends come by two pipes, in any order.
                    let mut rest = errors.take(QEMU_WORDS_BYTES_MAX);
                    drop(rest.read_to_end(&mut said).await);
                    return Some(ended(child, &said).await);
                }
            },
            read = errors.read(&mut error_buffer), if says_more => {
                let length = read.unwrap_or(0);
                said.extend_from_slice(&error_buffer[..length]);
                says_more = length > 0 && said.len() as u64 <= QEMU_WORDS_BYTES_MAX;
                continue;
            }
        }
        serial.note_stages(begin.elapsed().as_secs_f64());
        if serial.passed(test.marker.as_deref()) {
            return None;
        }
        if let Some(failure) = FAILURES.iter().find(|text| serial.text().contains(*text)) {
            return Some(format!("the serial line says {failure:?}"));
        }
        if serial.raw.len() > SERIAL_BYTES_MAX {
            return Some("the machine talks without end".to_owned());
        }
    }
}

fn show(report: &Report) {
    for (stage, seconds) in &report.reached {
        output::line(&format!("{stage:12} {seconds:6.1} s"));
    }
    if report.passed {
        output::line(&format!("{} boots ({:.1} s)", report.clone, report.seconds));
        return;
    }
    output::line("last lines of the serial line:");
    for line in &report.last_lines {
        output::line(&format!("  {line}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_reaches_this_host_by_the_name_of_its_network() {
        let check = |server: &str, expect: &str| assert_eq!(as_guest(server).unwrap(), expect);
        check("http://127.0.0.1:8080", "http://10.0.2.2:8080");
        check("http://localhost:8080/", "http://10.0.2.2:8080");
        check("http://[::1]:9000", "http://10.0.2.2:9000");
        check("http://10.1.2.3:8080", "http://10.1.2.3:8080");
        assert_eq!(as_guest("nonsense").unwrap_err().code(), "bad-server");
        assert_eq!(as_guest("https://10.1.2.3:8443").unwrap_err().code(), "bad-server");
    }

    #[test]
    fn nbd_is_looked_for_where_the_gateway_is() {
        assert_eq!(nbd_of("http://127.0.0.1:8080").unwrap(), "127.0.0.1:10809");
        assert_eq!(nbd_of("https://gate.lab:8443").unwrap(), "gate.lab:10809");
        assert_eq!(nbd_of("http://[::1]:8080").unwrap(), "[::1]:10809");
        assert_eq!(nbd_of("nonsense").unwrap_err().code(), "bad-server");
    }

    #[test]
    fn stages_are_read_off_the_serial_line_in_any_chopping() {
        let mut serial = Serial::default();
        for part in ["Welcome to GR", "UB!\r\n", "[    0.0] Linux ver", "sion 6.1\r\n", "host lo", "gin: "] {
            serial.raw.extend_from_slice(part.as_bytes());
            serial.note_stages(1.0);
        }
        let names: Vec<_> = serial.reached.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["boot-loader", "kernel", "login"]);
        assert!(serial.passed(None) && serial.passed(Some("version 6.1")) && !serial.passed(Some("never")));
        assert!(!Serial::default().passed(None));
    }

    #[test]
    fn what_the_boot_script_said_is_part_of_why() {
        let mut serial = Serial::default();
        assert_eq!(serial.script_said(), None);
        serial.raw = b"iPXE 1.0\r\nclonegate: starting pc\r\nclonegate: pc has no file /vmlinux.\r\nclonegate: Its label is wrong.\r\nNo bootable device\r\n".to_vec();
        assert_eq!(serial.script_said().as_deref(), Some("pc has no file /vmlinux. Its label is wrong."));
    }

    #[test]
    fn a_comma_in_a_name_does_not_end_an_option() {
        assert_eq!(option("/tmp/a,b"), "/tmp/a,,b");
    }
}
