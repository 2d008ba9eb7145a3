//! Checks a spec before it is stored: bounds, forms, and what would break a file that it goes into.

use std::net::IpAddr;

use clonegate_core::limits::{
    HOST_NAME_BYTES_MAX, IDENTITY_CARDS_MAX, IDENTITY_LIST_MAX, IDENTITY_TEXT_BYTES_MAX, IDENTITY_USER_DATA_BYTES_MAX,
    IDENTITY_USERS_MAX,
};
use clonegate_core::{Error, Result};

use super::spec::{IdentitySpec, InterfaceSpec, UserSpec, WindowsSpec};

/// Longest computer name of a Windows.
pub(super) const COMPUTER_NAME_MAX: usize = 15;
/// What a user-data begins with that cloud-init takes.
const USER_DATA_STARTS: &[&str] = &[
    "#cloud-config",
    "#!",
    "#include",
    "#cloud-boothook",
    "#part-handler",
    "## template: jinja",
    "Content-Type: multipart",
    "MIME-Version:",
];

fn wrong(field: &str, why: impl Into<String>) -> Error {
    Error::invalid("bad-identity", why)
        .on(field.to_owned())
        .hint("`clonegate clone identity set --help` tells the fields")
}

impl IdentitySpec {
    /// Checks it for a machine of this name.
    ///
    /// # Errors
    /// `Invalid` with code `bad-identity`, naming the field.
    pub fn check(&self, name: &str) -> Result<()> {
        host_name(&self.hostname.replace("{name}", name))?;
        if let Some(mac) = &self.mac {
            self::mac("mac", mac)?;
        }
        if let Some(id) = &self.machine_id
            && (id.len() != 32 || !id.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()))
        {
            return Err(wrong("machine_id", "a machine-id is 32 hexadecimal digits in lower case"));
        }
        keys("authorized_keys", &self.authorized_keys)?;
        list("users", self.users.len(), IDENTITY_USERS_MAX)?;
        for user in &self.users {
            user.check()?;
        }
        let mut names: Vec<&str> = self.users.iter().map(|u| u.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(wrong("users", format!("{} is there twice", twice[0])));
        }
        if let Some(network) = &self.network {
            list("network.interfaces", network.interfaces.len(), IDENTITY_CARDS_MAX)?;
            for interface in &network.interfaces {
                interface.check()?;
            }
        }
        if let Some(data) = &self.user_data {
            free("user_data", data)?;
            if !USER_DATA_STARTS.iter().any(|start| data.starts_with(start)) {
                return Err(wrong("user_data", "cloud-init knows a user-data by its first line")
                    .hint(format!("begin it with one of {}", USER_DATA_STARTS.join(", "))));
            }
        }
        self.windows.as_ref().map_or(Ok(()), |windows| windows.check(self, name))
    }
}

impl UserSpec {
    fn check(&self) -> Result<()> {
        account("users.name", &self.name)?;
        list("users.groups", self.groups.len(), IDENTITY_LIST_MAX)?;
        for group in &self.groups {
            account("users.groups", group)?;
        }
        if let Some(gecos) = &self.gecos {
            text("users.gecos", gecos)?;
            if gecos.contains([':', ',']) {
                return Err(wrong("users.gecos", "a full name has no colon and no comma"));
            }
        }
        if let Some(shell) = &self.shell
            && !(shell.starts_with('/')
                && shell.len() <= 255
                && shell.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+".contains(c)))
        {
            return Err(wrong("users.shell", "a shell is an absolute path"));
        }
        if let Some(hash) = &self.password_hash {
            password_hash(hash)?;
        }
        keys("users.authorized_keys", &self.authorized_keys)
    }
}

impl InterfaceSpec {
    fn check(&self) -> Result<()> {
        if let Some(name) = &self.name
            && (name.is_empty()
                || name.len() > 15
                || !name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)))
        {
            return Err(wrong("network.interfaces.name", "a card's name is 1 to 15 of A-Z a-z 0-9 . _ -"));
        }
        if let Some(mac) = &self.mac {
            self::mac("network.interfaces.mac", mac)?;
        }
        for (field, length) in [
            ("addresses", self.addresses.len()),
            ("nameservers", self.nameservers.len()),
            ("search", self.search.len()),
        ] {
            list(&format!("network.interfaces.{field}"), length, IDENTITY_LIST_MAX)?;
        }
        for address in &self.addresses {
            parse_address(address)?;
        }
        for domain in &self.search {
            host_name(domain)?;
        }
        match self.mtu {
            Some(mtu) if mtu < 576 => Err(wrong("network.interfaces.mtu", "a packet has at least 576 bytes")),
            _ => Ok(()),
        }
    }
}

impl WindowsSpec {
    fn check(&self, spec: &IdentitySpec, name: &str) -> Result<()> {
        for (field, value) in [("time_zone", &self.time_zone), ("organization", &self.organization)] {
            if let Some(value) = value {
                text(&format!("windows.{field}"), value)?;
            }
        }
        if let Some(xml) = &self.unattend {
            free("windows.unattend", xml)?;
        }
        let computer = self.computer_name(&spec.hostname.replace("{name}", name), name);
        let right = |c: char| c.is_ascii_alphanumeric() || c == '-';
        let numeric = computer.chars().all(|c| c.is_ascii_digit());
        if computer.is_empty() || computer.len() > COMPUTER_NAME_MAX || numeric || !computer.chars().all(right) {
            return Err(wrong(
                "windows.computer_name",
                format!(
                    "{computer:?} is no computer name: 1 to {COMPUTER_NAME_MAX} letters, digits and dashes, not only digits"
                ),
            ));
        }
        Ok(())
    }

    /// The computer name of the machine with this host name and clone name.
    pub(super) fn computer_name(&self, host: &str, name: &str) -> String {
        match &self.computer_name {
            Some(pattern) => pattern.replace("{name}", name),
            None => host.split('.').next().unwrap_or_default().to_owned(),
        }
    }
}

/// RFC 1123: labels of letters, digits and dashes.
fn host_name(host: &str) -> Result<()> {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    if host.len() > HOST_NAME_BYTES_MAX || !host.split('.').all(label) {
        let shown: String = host.chars().take(80).collect();
        return Err(wrong("hostname", format!("{shown:?} is no host name")).hint(
            "letters, digits and dashes, labels of at most 63 with dots between; `{name}` stands for the clone's name",
        ));
    }
    Ok(())
}

/// Six bytes in hexadecimal with colons, the address of one card.
fn mac(field: &str, text: &str) -> Result<()> {
    let parts: Vec<Option<u8>> =
        text.split(':').map(|p| if p.len() == 2 { u8::from_str_radix(p, 16).ok() } else { None }).collect();
    match parts.as_slice() {
        [Some(first), rest @ ..] if rest.len() == 5 && rest.iter().all(Option::is_some) && first & 1 == 0 => Ok(()),
        _ => Err(wrong(field, "it is no MAC address of one card")
            .hint("write it as 52:54:00:12:34:56; the first byte is even")),
    }
}

fn list(field: &str, length: usize, most: usize) -> Result<()> {
    if length > most { Err(wrong(field, format!("{length} are too many: at most {most}"))) } else { Ok(()) }
}

/// One line of text without control characters.
fn text(field: &str, text: &str) -> Result<()> {
    if text.len() > IDENTITY_TEXT_BYTES_MAX || text.chars().any(|c| c.is_control() || is_noncharacter(c)) {
        return Err(wrong(
            field,
            format!("one line of at most {IDENTITY_TEXT_BYTES_MAX} bytes without control characters"),
        ));
    }
    Ok(())
}

/// What YAML and XML do not take, besides control characters.
fn is_noncharacter(c: char) -> bool {
    matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

/// A text of many lines that is handed on as it is.
fn free(field: &str, text: &str) -> Result<()> {
    if text.is_empty() || text.len() > IDENTITY_USER_DATA_BYTES_MAX || text.contains('\0') {
        return Err(wrong(field, format!("it has {} bytes", text.len())).hint(format!(
            "1 to {IDENTITY_USER_DATA_BYTES_MAX} bytes of text without NUL; larger ones are fetched with #include"
        )));
    }
    Ok(())
}

/// A name of a user or group, as `useradd` takes it.
fn account(field: &str, name: &str) -> Result<()> {
    let mut characters = name.chars();
    let first = characters.next().is_some_and(|c| c.is_ascii_lowercase() || c == '_');
    if !first
        || name.len() > 32
        || !characters.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c))
    {
        let shown: String = name.chars().take(40).collect();
        return Err(wrong(field, format!("{shown:?} is no name of a user or group"))
            .hint("1 to 32 of a-z 0-9 _ -, beginning with a letter"));
    }
    Ok(())
}

fn keys(field: &str, all: &[String]) -> Result<()> {
    list(field, all.len(), IDENTITY_LIST_MAX)?;
    for key in all {
        text(field, key)?;
        let kind =
            |word: &str| ["ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-"].iter().any(|start| word.starts_with(start));
        let mut words = key.split(' ').skip_while(|word| !kind(word)).skip(1);
        if !words.next().is_some_and(|blob| blob.starts_with("AAAA")) {
            return Err(
                wrong(field, "it is no SSH public key").hint("one line of a .pub file, as \"ssh-ed25519 AAAA… anna\"")
            );
        }
    }
    Ok(())
}

/// A crypt(3) hash of a method that is not broken.
fn password_hash(hash: &str) -> Result<()> {
    let known =
        ["$6$", "$5$", "$y$", "$gy$", "$2a$", "$2b$", "$2y$", "$7$"].iter().any(|start| hash.starts_with(start));
    let right = |c: char| c.is_ascii_alphanumeric() || "$./=,-+".contains(c);
    if !known || hash.len() < 20 || hash.len() > 512 || !hash.chars().all(right) {
        return Err(wrong("users.password_hash", "it is no password hash")
            .hint("give what `mkpasswd` prints, never the password itself"));
    }
    Ok(())
}

/// `10.0.0.5/24` as an address and the length of its prefix.
pub(super) fn parse_address(text: &str) -> Result<(IpAddr, u8)> {
    let parsed = text.split_once('/').and_then(|(address, length)| {
        let address: IpAddr = address.parse().ok()?;
        let length: u8 = length.parse().ok()?;
        (length <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, length))
    });
    parsed.ok_or_else(|| {
        let shown: String = text.chars().take(60).collect();
        wrong("network.interfaces.addresses", format!("{shown:?} is no address"))
            .hint("write it with its prefix, as 10.0.0.5/24")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(toml: &str, expect: Option<&str>) {
        let spec: IdentitySpec = toml::from_str(toml).unwrap();
        let got = spec.check("desk-001").err();
        assert_eq!(got.as_ref().and_then(|e| e.object()), expect, "{toml}: {got:?}");
    }

    #[test]
    fn what_would_break_a_file_or_a_guest_is_refused_by_its_field() {
        check("", None);
        check("hostname = '{name}.lab.example'", None);
        check("hostname = '{name} --'", Some("hostname"));
        check("hostname = 'a..b'", Some("hostname"));
        check("hostname = \"a\\nb: c\"", Some("hostname"));
        check("mac = '02:00:00:00:00:01'", None);
        check("mac = '01:00:00:00:00:01'", Some("mac"));
        check("mac = '2:0:0:0:0:1'", Some("mac"));
        check("machine_id = '0123456789abcdef0123456789abcdef'", None);
        check("machine_id = '0123456789ABCDEF0123456789ABCDEF'", Some("machine_id"));
        check("authorized_keys = ['ssh-ed25519 AAAAC3 anna', 'no-pty,from=\"10.*\" ssh-rsa AAAAB3 bob']", None);
        check("authorized_keys = ['hello']", Some("authorized_keys"));
        check("authorized_keys = [\"ssh-rsa AAAA\\nroot: x\"]", Some("authorized_keys"));
        check("users = [{ name = 'anna', sudo = true, shell = '/bin/bash', groups = ['video'] }]", None);
        check("users = [{ name = 'Anna' }]", Some("users.name"));
        check("users = [{ name = 'anna' }, { name = 'anna' }]", Some("users"));
        check("users = [{ name = 'anna', password_hash = 'secret' }]", Some("users.password_hash"));
        check("users = [{ name = 'anna', password_hash = '$6$salt$0123456789abcdef' }]", None);
        check("users = [{ name = 'anna', gecos = 'a:b' }]", Some("users.gecos"));
        check("users = [{ name = 'anna', shell = 'bash -c x' }]", Some("users.shell"));
        check("user_data = 'hello'", Some("user_data"));
        check("user_data = '#cloud-config'", None);
        check("network.interfaces = [{ addresses = ['10.0.0.5/24'], gateway4 = '10.0.0.1' }]", None);
        check("network.interfaces = [{ addresses = ['10.0.0.5/33'] }]", Some("network.interfaces.addresses"));
        check("network.interfaces = [{ name = 'a name' }]", Some("network.interfaces.name"));
        check("[windows]\ntime_zone = 'UTC'", None);
        check("hostname = 'a-name-longer-than-fifteen'\n[windows]", Some("windows.computer_name"));
    }

    #[test]
    fn every_list_has_an_end() {
        let keys = vec!["ssh-rsa AAAA".to_owned(); IDENTITY_LIST_MAX + 1];
        let spec = IdentitySpec { authorized_keys: keys, ..IdentitySpec::default() };
        assert_eq!(spec.check("d").unwrap_err().object(), Some("authorized_keys"));
        let data = format!("#!{}", "x".repeat(IDENTITY_USER_DATA_BYTES_MAX));
        let spec = IdentitySpec { user_data: Some(data), ..IdentitySpec::default() };
        assert_eq!(spec.check("d").unwrap_err().object(), Some("user_data"));
    }
}
