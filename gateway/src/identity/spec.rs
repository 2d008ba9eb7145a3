//! The spec of an identity: what an operator says about a machine, as JSON or TOML.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What an operator says about a machine; everything may be left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct IdentitySpec {
    /// Host name, maybe with a domain. `{name}` stands for the clone's name.
    pub hostname: String,
    /// Which kind of disk is made of it.
    pub format: IdentityFormat,
    /// MAC address of its first card; follows from the clone's id when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// machine-id, 32 hexadecimal digits; follows from the instance-id when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    /// Whether it is given SSH host keys, so that they are the same after a reset.
    pub ssh_host_keys: HostKeys,
    /// SSH keys that may log in as the image's default user.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub authorized_keys: Vec<String>,
    /// Users that are made besides the image's default user.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<UserSpec>,
    /// Its network cards; the image's own way (DHCP, as a rule) when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkSpec>,
    /// Free cloud-init user-data, handed on byte for byte. Keys that it sets win over what follows from the rest of this spec.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_data: Option<String>,
    /// What a Windows needs besides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub windows: Option<WindowsSpec>,
}

impl Default for IdentitySpec {
    fn default() -> Self {
        Self {
            hostname: "{name}".to_owned(),
            format: IdentityFormat::default(),
            mac: None,
            machine_id: None,
            ssh_host_keys: HostKeys::default(),
            authorized_keys: Vec::new(),
            users: Vec::new(),
            network: None,
            user_data: None,
            windows: None,
        }
    }
}

/// Which kind of disk is made of an identity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum IdentityFormat {
    /// cloud-init NoCloud: label `CIDATA`.
    #[default]
    Nocloud,
    /// OpenStack config drive: label `config-2`; also for Cloudbase-Init.
    ConfigDrive,
}

/// Whether a machine is given SSH host keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HostKeys {
    /// An Ed25519 key is made for it and stays the same.
    #[default]
    Generate,
    /// It makes its own, at its first boot and after each reset.
    None,
}

/// A user of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UserSpec {
    /// Log-in name.
    pub name: String,
    /// Full name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gecos: Option<String>,
    /// Groups besides the user's own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Shell; the image's usual one when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shell: Option<String>,
    /// May do everything as root without a password.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub sudo: bool,
    /// Password as a crypt(3) hash, as `mkpasswd` makes it; never the password. Shown as `stored`, and `stored` keeps it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_hash: Option<String>,
    /// SSH keys that may log in as this user.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub authorized_keys: Vec<String>,
}

/// The network of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkSpec {
    /// Its cards. The first has the identity's MAC address unless it says otherwise.
    pub interfaces: Vec<InterfaceSpec>,
}

/// One network card.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct InterfaceSpec {
    /// What the system calls it; `nic0` and so on when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// MAC address by which it is found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// IPv4 by DHCP.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dhcp4: bool,
    /// IPv6 by DHCP.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dhcp6: bool,
    /// Fixed addresses, as `10.0.0.5/24`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Default way of IPv4.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub gateway4: Option<Ipv4Addr>,
    /// Default way of IPv6.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub gateway6: Option<Ipv6Addr>,
    /// Name servers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub nameservers: Vec<IpAddr>,
    /// Domains that short names are looked up in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Largest packet, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
}

/// What a Windows needs besides. A password has no place here: an answer file holds it readable.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WindowsSpec {
    /// Computer name, at most 15 characters, maybe with `{name}`; the first part of the host name when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub computer_name: Option<String>,
    /// Time zone as Windows calls it, as `W. Europe Standard Time`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// Registered organisation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub organization: Option<String>,
    /// A whole `unattend.xml` instead of the one that is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unattend: Option<String>,
}
