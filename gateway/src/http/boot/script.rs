//! iPXE scripts: the built-in ones, and an administrator's template with the same blanks.

use clonegate_core::{Error, Result};

use crate::device::Version;
use crate::lifecycle::views::{CloneView, Labels};

/// Labels of the files that a clone is booted from.
pub(super) const KERNEL_LABEL: &str = "boot.kernel";
pub(super) const INITRD_LABEL: &str = "boot.initrd";

/// Blanks of a template, as they are written there: `{clone}`.
const BLANKS: &[&str] = &["clone", "base_url", "disk_url", "files_url", "version", "nbd", "kernel", "initrd", "args"];

/// Boots the clone's disk. iPXE's own drive is gone when an operating system has started; what goes on from there is in
/// `docs/boot.md`. All is read of one version of the clone: iPXE sends no precondition, so the
/// version stands in the URL, and a clone that is reset meanwhile is an error and no mixture. A gateway that is started anew
/// meanwhile costs a pause: iPXE itself asks again for a block of the disk, and what it gives up on is tried from the beginning.
const SANBOOT: &str = "#!ipxe
isset ${tries} || set tries:int32 0
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
const KERNEL: &str = "#!ipxe
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
    /// `http://HOST:PORT`.
    pub(super) base_url: String,
    /// `HOST:PORT` of NBD, if it is served.
    pub(super) nbd: Option<String>,
}

impl Address {
    /// As the client calls us by its `Host` header.
    ///
    /// # Errors
    /// `Invalid` with code `bad-host` for a header that is no host: it goes into a script.
    pub(super) fn of_host(host: &str, nbd_port: Option<u16>) -> Result<Self> {
        let right = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
        if host.is_empty() || host.len() > 255 || !host.chars().all(right) {
            return Err(Error::invalid("bad-host", "the Host header is no host"));
        }
        let name = match host.rsplit_once(':') {
            Some((name, port)) if !port.contains(']') && port.chars().all(|c| c.is_ascii_digit()) => name,
            _ => host,
        };
        let nbd = nbd_port.map(|port| format!("{name}:{port}"));
        Ok(Self { base_url: format!("http://{host}"), nbd })
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
    let kernel = path(&clone.labels, KERNEL_LABEL)?;
    let initrd = path(&clone.labels, INITRD_LABEL)?;
    let version = version.to_string();
    let name = clone.name.as_str();
    let base_url = address.base_url.as_str();
    let nbd = address.nbd.as_ref().map(|address| format!("{address}/{name}")).unwrap_or_default();
    let disk_url = format!("{base_url}/v1/clones/{name}/disk");
    let files_url = format!("{base_url}/v1/clones/{name}/files/-");
    let mut values: Vec<(&str, &str)> = vec![
        ("clone", name),
        ("base_url", base_url),
        ("disk_url", &disk_url),
        ("files_url", &files_url),
        ("version", &version),
        ("nbd", &nbd),
        ("kernel", kernel),
        ("initrd", initrd),
    ];
    let args = render(text(&clone.labels, "boot.args")?, &values)?;
    values.push(("args", &args));
    let usual = if kernel.is_empty() || initrd.is_empty() { SANBOOT } else { KERNEL };
    render(template.unwrap_or(usual), &values)
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

/// A label that goes into a script, where a line is a command.
fn text<'a>(labels: &'a Labels, name: &str) -> Result<&'a str> {
    let value = labels.get(name).map_or("", String::as_str);
    if value.chars().any(char::is_control) {
        return Err(Error::invalid("bad-boot-label", format!("the label {name} has control characters")));
    }
    Ok(value)
}

/// A label that is a path in the volume.
pub(super) fn path<'a>(labels: &'a Labels, name: &str) -> Result<&'a str> {
    let value = text(labels, name)?;
    let right = |c: char| c.is_ascii_alphanumeric() || "/._-+~@".contains(c);
    if value.is_empty() || (value.starts_with('/') && value.chars().all(right)) {
        return Ok(value);
    }
    Err(Error::invalid("bad-boot-label", format!("the label {name} is no path"))
        .hint("write an absolute path, as /boot/vmlinuz, without blanks"))
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
pub(super) fn menu<'a>(names: impl Iterator<Item = &'a str> + Clone, address: &Address) -> String {
    let items: String = names.clone().map(|name| format!("item {name} {name}\n")).collect();
    format!(
        "#!ipxe\nmenu clonegate: which clone?\n{items}item --gap\nitem exit Next boot device\n\
         choose clone && iseq ${{clone}} exit && exit 1 || chain {}/boot/${{clone}}.ipxe || exit 1\n",
        address.base_url
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> Address {
        Address::of_host("10.0.0.1:8080", Some(10809)).unwrap()
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
    fn the_host_header_becomes_addresses_and_nothing_else() {
        let check = |host: &str, nbd: &str| {
            assert_eq!(Address::of_host(host, Some(1)).unwrap().nbd.as_deref(), Some(nbd), "{host}");
        };
        check("10.0.0.1:8080", "10.0.0.1:1");
        check("gate", "gate:1");
        check("[fe80::1]:80", "[fe80::1]:1");
        check("[fe80::1]", "[fe80::1]:1");
        for host in ["", "a b", "a\nshell", "a/b", "a${x}"] {
            assert_eq!(Address::of_host(host, None).unwrap_err().code(), "bad-host", "{host}");
        }
    }

    #[test]
    fn a_label_that_would_be_a_command_is_refused() {
        let labels = Labels::from([("boot.kernel".into(), "/x y".into()), ("boot.args".into(), "a\nshell".into())]);
        assert_eq!(path(&labels, "boot.kernel").unwrap_err().code(), "bad-boot-label");
        assert_eq!(text(&labels, "boot.args").unwrap_err().code(), "bad-boot-label");
    }

    #[test]
    fn the_scripts_begin_as_ipxe_wants() {
        let scripts = [ask_again(&address()), refuse(&["no $clone\nhere"]), menu(["a", "b"].into_iter(), &address())];
        let later = later(&["the store is away."], &address());
        assert!(later.contains("echo clonegate: the store is away.\nsleep 20\nchain "), "{later}");
        for script in &scripts {
            assert!(script.starts_with("#!ipxe\n"), "{script}");
        }
        assert!(scripts[1].contains("echo clonegate: no  clone here\n"), "{}", scripts[1]);
        assert!(scripts[2].contains("item a a\nitem b b\n"), "{}", scripts[2]);
    }
}
