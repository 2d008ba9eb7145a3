//! iPXE scripts: the built-in ones, and an administrator's template with the same blanks.

use clonegate_core::{Error, Result};

use crate::device::Version;
use crate::lifecycle::boot_labels::{self, INITRD, KERNEL};
use crate::lifecycle::views::{CloneView, Labels};

/// Blanks of a template, as they are written there: `{clone}`.
const BLANKS: &[&str] = &["clone", "base_url", "disk_url", "files_url", "version", "nbd", "kernel", "initrd", "args"];

/// iPXE on BIOS counts the bytes of a file in 32 bits with a sign when it asks for a part of it, and without one when it asks how large
/// it is: beyond 2 GiB it has errors, beyond 4 GiB other sectors than those it wants, and a multiple of 4 GiB has no size at all. So with
/// 1.0 and with 2.0; UEFI has no such bound.
const BIOS_READS_BYTES: u64 = 2 << 30;
const BIOS_WRAPS_BYTES: u64 = 4 << 30;

/// Boots the clone's disk. iPXE's own drive is gone when an operating system has started; what goes on from there is in
/// `docs/boot.md`. All is read of one version of the clone: iPXE sends no precondition, so the
/// version stands in the URL, and a clone that is reset meanwhile is an error and no mixture. A gateway that is started anew
/// meanwhile costs a pause: iPXE itself asks again for a block of the disk, and what it gives up on is tried from the beginning.
const SANBOOT: &str = "isset ${tries} || set tries:int32 0
:again
echo clonegate: starting {clone}
sanboot --drive 0x80 {disk_url}?version={version} || goto failed
:failed
echo clonegate: {clone} did not start from {disk_url}
inc tries
iseq ${tries} 5 && goto enough ||
echo clonegate: trying again in 10 seconds
sleep 10
chain --replace {base_url}/boot/{clone}.ipxe || goto again
:enough
exit 1
";

/// Loads kernel and initrd out of the clone: fewer requests than the disk, and the kernel can be told where its disk is.
const KERNEL_SCRIPT: &str = "#!ipxe
isset ${tries} || set tries:int32 0
:again
echo clonegate: starting the kernel of {clone}
kernel {files_url}{kernel}?version={version} initrd=initrd {args} || goto failed
initrd --name initrd {files_url}{initrd}?version={version} || goto failed
boot || goto failed
:failed
echo clonegate: {clone} did not start from {files_url}{kernel}
inc tries
iseq ${tries} 5 && goto enough ||
echo clonegate: trying again in 10 seconds
imgfree
sleep 10
chain --replace {base_url}/boot/{clone}.ipxe || goto again
:enough
exit 1
";

/// Where a client reaches this gateway.
#[derive(Debug, Clone)]
pub(super) struct Address {
    /// `http://HOST:PORT`, or `https://HOST:PORT` for a client that came under TLS.
    pub(super) base_url: String,
    /// `HOST:PORT` of NBD, if it is served.
    pub(super) nbd: Option<String>,
}

impl Address {
    /// As the client calls us by its `Host` header.
    ///
    /// # Errors
    /// `Invalid` with code `bad-host` for a header that is no host: it goes into a script.
    pub(super) fn of_host(host: &str, secure: bool, nbd_port: Option<u16>) -> Result<Self> {
        let right = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
        if host.is_empty() || host.len() > 255 || !host.chars().all(right) {
            return Err(Error::invalid("bad-host", "the Host header is no host"));
        }
        let name = match host.rsplit_once(':') {
            Some((name, port)) if !port.contains(']') && port.chars().all(|c| c.is_ascii_digit()) => name,
            _ => host,
        };
        let nbd = nbd_port.map(|port| format!("{name}:{port}"));
        let scheme = if secure { "https" } else { "http" };
        Ok(Self { base_url: format!("{scheme}://{host}"), nbd })
    }
}

/// The script of a clone: the administrator's, or by its labels `boot.kernel`, `boot.initrd` and `boot.args` that of its
/// kernel, or that of its disk.
///
/// # Errors
/// `Invalid` with code `bad-boot-label` when a label cannot stand in a script; those of [`render`].
pub(super) fn of_clone(
    clone: &CloneView,
    version: Version,
    address: &Address,
    template: Option<&str>,
) -> Result<String> {
    let kernel = boot_labels::path(&clone.labels, KERNEL)?;
    let initrd = boot_labels::path(&clone.labels, INITRD)?;
    let version = version.to_string();
    let name = clone.name.as_str();
    let base_url = address.base_url.as_str();
    let nbd = address.nbd.as_ref().map(|address| format!("{address}/{name}"));
    let disk_url = format!("{base_url}/v1/clones/{name}/disk");
    let files_url = format!("{base_url}/v1/clones/{name}/files/-");
    let mut values: Vec<(&str, &str)> = vec![
        ("clone", name),
        ("base_url", base_url),
        ("disk_url", &disk_url),
        ("files_url", &files_url),
        ("version", &version),
        ("kernel", kernel),
        ("initrd", initrd),
    ];
    values.extend(nbd.as_deref().map(|nbd| ("nbd", nbd)));
    let usual = match (kernel, initrd) {
        ("", "") => format!("#!ipxe\n{}{SANBOOT}", warning(clone.size)),
        ("", _) => {
            return Ok(refuse(&[&format!("{name} has the label {INITRD} without {KERNEL}: set both, or none.")]));
        }
        (_, "") => {
            KERNEL_SCRIPT.lines().filter(|line| !line.starts_with("initrd ")).map(|line| format!("{line}\n")).collect()
        }
        _ => KERNEL_SCRIPT.to_owned(),
    };
    let script = template.unwrap_or(&usual);
    let args = if script.contains("{args}") { text(&clone.labels, "boot.args")? } else { "" };
    if nbd.is_none() && [script, args].iter().any(|text| text.contains("{nbd}")) {
        let what = format!("{name} is to have its disk by NBD, which this gateway does not serve over TCP.");
        return Ok(refuse(&[&what, "Set listen.nbd in its configuration."]));
    }
    let args = render(args, &values)?;
    values.push(("args", &args));
    render(script, &values)
}

/// What the script says first of a disk that iPXE on BIOS cannot read to its end.
fn warning(size: u64) -> String {
    if size <= BIOS_READS_BYTES {
        return String::new();
    }
    let (reads, end) = if size.is_multiple_of(BIOS_WRAPS_BYTES) {
        ("nothing of a disk whose size is a multiple of 4 GiB", "sleep 20\nexit 1")
    } else {
        ("2 GiB of a disk", "echo clonegate: Trying all the same.\nsleep 10")
    };
    format!(
        "iseq ${{platform}} pcbios || goto fits\n\
         echo clonegate: on a BIOS machine iPXE reads {reads} by HTTP, and {{clone}} has {size} bytes.\n\
         echo clonegate: Set its labels {KERNEL} and {INITRD}, or start this machine by UEFI.\n\
         {end}\n:fits\n"
    )
}

/// Fills the blanks of a template. A brace that names no blank stays: iPXE has `${…}` of its own.
///
/// # Errors
/// `Invalid` with code `bad-boot-template` when there is a blank that has no value here.
pub(super) fn render(template: &str, values: &[(&str, &str)]) -> Result<String> {
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find('{') {
        let (before, from) = rest.split_at(at);
        text.push_str(before);
        let name = from[1..].split('}').next().filter(|name| from[1..].len() > name.len()).unwrap_or_default();
        let ours = !before.ends_with('$') && BLANKS.contains(&name);
        if ours {
            let value = values
                .iter()
                .find(|(blank, _)| *blank == name)
                .ok_or_else(|| Error::invalid("bad-boot-template", format!("{{{name}}} has no value here")))?;
            text.push_str(value.1);
            rest = &from[name.len() + 2..];
        } else {
            text.push('{');
            rest = &from[1..];
        }
    }
    text.push_str(rest);
    Ok(text)
}

/// The first blank of a template that there is no value for, if there is one.
pub fn unknown_blank(template: &str) -> Option<&str> {
    template.match_indices('{').filter(|(at, _)| !template[..*at].ends_with('$')).find_map(|(at, _)| {
        let name = template[at + 1..].split('}').next().filter(|name| name.len() < template[at + 1..].len())?;
        let a_blank = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || b"_-".contains(&byte));
        (a_blank && !BLANKS.contains(&name)).then_some(name)
    })
}

/// The blanks of a template, for a message.
pub fn blanks() -> String {
    BLANKS.iter().map(|name| format!("{{{name}}}")).collect::<Vec<_>>().join(" ")
}

/// A label that goes into a script, where a line is a command.
fn text<'a>(labels: &'a Labels, name: &str) -> Result<&'a str> {
    let value = labels.get(name).map_or("", String::as_str);
    if value.chars().any(char::is_control) {
        return Err(Error::invalid("bad-boot-label", format!("the label {name} has control characters")));
    }
    Ok(value)
}

/// Makes the machine ask again with what it knows of itself.
pub(super) fn ask_again(address: &Address) -> String {
    let query = "mac=${netX/mac:hexhyp}&uuid=${uuid:uristring}&serial=${serial:uristring}";
    format!("#!ipxe\nchain --autofree {}/boot.ipxe?{query} || exit 1\n", address.base_url)
}

/// A text on the screen of a machine that gets nothing, then its next boot device.
pub(super) fn refuse(lines: &[&str]) -> String {
    let echo = |line: &&str| format!("echo clonegate: {}\n", line.replace(|c: char| c.is_control() || c == '$', " "));
    let text: String = lines.iter().map(echo).collect();
    format!("#!ipxe\n{text}sleep 20\nexit 1\n")
}

/// A text on the screen of a machine whose clone cannot be had just now, which then asks again, for as long as it takes.
pub(super) fn later(lines: &[&str], address: &Address) -> String {
    let refused = refuse(lines);
    let text = refused.strip_suffix("exit 1\n").unwrap_or(&refused);
    format!("{text}chain --replace {}/boot.ipxe || exit 1\n", address.base_url)
}

/// A menu of clones.
pub(super) fn menu<'a>(names: impl Iterator<Item = &'a str>, more: bool, address: &Address) -> String {
    let items: String = names.map(|name| format!("item {name} {name}\n")).collect();
    let more = if more { "item --gap There are more clones; label one for this machine.\n" } else { "" };
    format!(
        "#!ipxe\nmenu clonegate: which clone?\n{items}{more}item --gap\nitem exit Next boot device\n\
         choose clone && iseq ${{clone}} exit && exit 1 || chain {}/boot/${{clone}}.ipxe || exit 1\n",
        address.base_url
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> Address {
        Address::of_host("10.0.0.1:8080", false, Some(10809)).unwrap()
    }

    const VERSION: Version = Version { life: 1, change: 2 };

    fn clone(labels: &[(&str, &str)], size: u64) -> CloneView {
        let labels: Labels = labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        let view = serde_json::json!({
            "name": "pc", "id": "", "kind": "linked", "template": "t", "version": 1, "datastore": "d", "slot": 0, "size": size,
            "durability": "local", "lifetime": "persistent", "labels": labels, "attached": [], "disk": "", "created_ms": 0,
        });
        serde_json::from_value(view).unwrap()
    }

    #[test]
    fn a_template_has_its_blanks_filled_and_keeps_what_is_ipxes() {
        let check = |template: &str, expect: &str| {
            assert_eq!(render(template, &[("clone", "pc"), ("nbd", "h:1/pc")]).unwrap(), expect);
        };
        check("echo {clone} ${clone} {other} { } {clone", "echo pc ${clone} {other} { } {clone");
        check("{clone}{nbd}", "pch:1/pc");
        check("", "");
        assert_eq!(render("{disk_url}", &[]).unwrap_err().code(), "bad-boot-template");
    }

    #[test]
    fn a_blank_that_is_misspelt_is_found() {
        let check = |template: &str, expect: Option<&str>| assert_eq!(unknown_blank(template), expect, "{template}");
        check("sanboot {disk}", Some("disk"));
        check("sanboot {disk_url} ${clone} ${net0/mac} {} { x } {clone", None);
        check("{disk-url}", Some("disk-url"));
        check("${disk} {version}{nope}", Some("nope"));
    }

    #[test]
    fn a_kernel_is_booted_without_an_initrd_and_an_initrd_never_alone() {
        let script = |clone: &CloneView| of_clone(clone, VERSION, &address(), None).unwrap();
        let kernel = script(&clone(&[("boot.kernel", "/vmlinuz"), ("boot.args", "disk={nbd}")], 1));
        assert!(kernel.contains("/files/-/vmlinuz?version=") && kernel.contains("disk=10.0.0.1:10809/pc"), "{kernel}");
        assert!(!kernel.contains("\ninitrd ") && kernel.contains("\nboot "), "{kernel}");
        let alone = script(&clone(&[("boot.initrd", "/initrd")], 1));
        assert!(alone.contains("boot.initrd without boot.kernel") && !alone.contains("sanboot"), "{alone}");
        let without = Address { nbd: None, ..address() };
        let wants = clone(&[("boot.kernel", "/vmlinuz"), ("boot.args", "disk={nbd}")], 1);
        let told = of_clone(&wants, VERSION, &without, None).unwrap();
        assert!(told.contains("does not serve") && !told.contains("\nkernel "), "{told}");
    }

    #[test]
    fn a_disk_that_ipxe_on_bios_cannot_read_is_told_of() {
        let script = |size: u64| of_clone(&clone(&[], size), VERSION, &address(), None).unwrap();
        assert!(!script(2 << 30).contains("pcbios"));
        let some = script(5 << 30);
        assert!(some.starts_with("#!ipxe\niseq ${platform} pcbios || goto fits\n"), "{some}");
        assert!(some.contains("Trying all the same") && some.contains("\n:fits\nisset"), "{some}");
        let nothing = script(8 << 30);
        assert!(nothing.contains("a multiple of 4 GiB") && nothing.contains("\nexit 1\n:fits\n"), "{nothing}");
    }

    #[test]
    fn the_host_header_becomes_addresses_and_nothing_else() {
        let check = |host: &str, nbd: &str| {
            assert_eq!(Address::of_host(host, false, Some(1)).unwrap().nbd.as_deref(), Some(nbd), "{host}");
        };
        check("10.0.0.1:8080", "10.0.0.1:1");
        check("gate", "gate:1");
        check("[fe80::1]:80", "[fe80::1]:1");
        check("[fe80::1]", "[fe80::1]:1");
        let secure = Address::of_host("gate.lab:8443", true, Some(1)).unwrap();
        assert_eq!((secure.base_url.as_str(), secure.nbd.as_deref()), ("https://gate.lab:8443", Some("gate.lab:1")));
        for host in ["", "a b", "a\nshell", "a/b", "a${x}"] {
            assert_eq!(Address::of_host(host, false, None).unwrap_err().code(), "bad-host", "{host}");
        }
    }

    #[test]
    fn a_label_that_would_be_a_command_is_refused() {
        let labels = Labels::from([("boot.args".into(), "a\nshell".into())]);
        assert_eq!(text(&labels, "boot.args").unwrap_err().code(), "bad-boot-label");
    }

    #[test]
    fn the_scripts_begin_as_ipxe_wants() {
        let scripts =
            [ask_again(&address()), refuse(&["no $clone\nhere"]), menu(["a", "b"].into_iter(), true, &address())];
        let later = later(&["the store is away."], &address());
        assert!(later.contains("echo clonegate: the store is away.\nsleep 20\nchain "), "{later}");
        for script in &scripts {
            assert!(script.starts_with("#!ipxe\n"), "{script}");
        }
        assert!(scripts[1].contains("echo clonegate: no  clone here\n"), "{}", scripts[1]);
        assert!(scripts[2].contains("item a a\nitem b b\nitem --gap There are more clones"), "{}", scripts[2]);
    }
}
