//! The files of cloud-init's NoCloud: written as JSON, which is YAML.
//!
//! Host name and SSH keys of the default user are metadata; the rest of the spec is vendor-data, so that free user-data stays untouched and what it sets
//! wins, key by key.

use serde_json::{Map, Value, json};

use super::facts::Identity;
use super::spec::UserSpec;
use super::{File, network};

/// What says that a file is cloud-config.
const CLOUD_CONFIG: &str = "#cloud-config\n";

impl Identity {
    /// The files of a NoCloud disk.
    pub(super) fn nocloud(&self) -> Vec<File> {
        let mut files = vec![
            File { path: "meta-data", text: self.meta_data() },
            File { path: "user-data", text: self.user_data() },
            File { path: "vendor-data", text: self.vendor_data() },
        ];
        files.extend(self.network_config().map(|text| File { path: "network-config", text }));
        files
    }

    /// `meta-data`: who it is.
    pub fn meta_data(&self) -> String {
        let mut data = json!({ "instance-id": self.instance_id, "local-hostname": self.hostname });
        if !self.spec.authorized_keys.is_empty() {
            data["public-keys"] = json!(self.spec.authorized_keys);
        }
        lines(&data)
    }

    /// `user-data`: what the operator gave, byte for byte.
    pub fn user_data(&self) -> String {
        self.spec.user_data.clone().unwrap_or_else(|| format!("{CLOUD_CONFIG}{{}}\n"))
    }

    /// `vendor-data`: what follows from the spec.
    pub fn vendor_data(&self) -> String {
        let mut config = Map::new();
        config.insert("manage_etc_hosts".to_owned(), json!("localhost"));
        config.insert(
            "write_files".to_owned(),
            json!([{
                "path": "/etc/machine-id",
                "owner": "root:root",
                "permissions": "0444",
                "content": format!("{}\n", self.machine_id),
            }]),
        );
        if let Some(key) = &self.host_key {
            // Keys that the template was made with would be the same on every clone.
            config.insert("ssh_deletekeys".to_owned(), json!(true));
            config.insert(
                "ssh_keys".to_owned(),
                json!({ "ed25519_private": key.private_file(), "ed25519_public": key.public_line() }),
            );
        }
        if !self.spec.users.is_empty() {
            let users: Vec<Value> = self.spec.users.iter().map(user).collect();
            config.insert("users".to_owned(), [vec![json!("default")], users].concat().into());
        }
        format!("{CLOUD_CONFIG}{}", lines(&Value::Object(config)))
    }

    /// `network-config`, when the spec says something about the network.
    pub fn network_config(&self) -> Option<String> {
        self.spec.network.as_ref().map(|spec| lines(&network::version_2(spec, &self.mac)))
    }
}

fn user(user: &UserSpec) -> Value {
    let mut config = Map::new();
    config.insert("name".to_owned(), json!(user.name));
    if let Some(gecos) = &user.gecos {
        config.insert("gecos".to_owned(), json!(gecos));
    }
    if !user.groups.is_empty() {
        config.insert("groups".to_owned(), json!(user.groups));
    }
    if let Some(shell) = &user.shell {
        config.insert("shell".to_owned(), json!(shell));
    }
    if user.sudo {
        config.insert("sudo".to_owned(), json!("ALL=(ALL) NOPASSWD:ALL"));
    }
    config.insert("lock_passwd".to_owned(), json!(user.password_hash.is_none()));
    if let Some(hash) = &user.password_hash {
        config.insert("hashed_passwd".to_owned(), json!(hash));
    }
    if !user.authorized_keys.is_empty() {
        config.insert("ssh_authorized_keys".to_owned(), json!(user.authorized_keys));
    }
    Value::Object(config)
}

/// JSON for people, with a newline at the end.
pub(super) fn lines(value: &Value) -> String {
    format!("{value:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::facts::{Body, hex};
    use crate::identity::spec::IdentitySpec;
    use clonegate_core::ids::CloneId;

    fn identity(toml: &str) -> Identity {
        let spec: IdentitySpec = toml::from_str(toml).unwrap();
        spec.check("desk-001").unwrap();
        let body = Body { spec, host_key: Some(hex(&[9; 32])), mac_number: 0 };
        Identity::of(CloneId::from_bytes([1; 16]), "desk-001", 2, Some(&body)).unwrap()
    }

    fn parsed(text: &str) -> Value {
        serde_json::from_str(text.trim_start_matches(CLOUD_CONFIG)).unwrap()
    }

    #[test]
    fn the_spec_is_in_the_files_and_no_text_leaves_its_place() {
        let hostile = "a\"]} # : - &x *x !!python/object |> %";
        let identity = identity(&format!(
            "authorized_keys = ['ssh-ed25519 AAAA {hostile}']\n[[users]]\nname = 'anna'\ngecos = 'A # {{}} \"'\npassword_hash = '$6$abcdefgh$ijklmnopq'"
        ));
        let meta = parsed(&identity.meta_data());
        assert_eq!(meta["local-hostname"], "desk-001");
        assert_eq!(meta["public-keys"][0], format!("ssh-ed25519 AAAA {hostile}"));
        let vendor = parsed(&identity.vendor_data());
        assert_eq!(vendor["users"][0], "default");
        assert_eq!(vendor["users"][1]["gecos"], "A # {} \"");
        assert_eq!(vendor["users"][1]["lock_passwd"], false);
        assert!(
            vendor["ssh_keys"]["ed25519_private"]
                .as_str()
                .unwrap()
                .starts_with("-----BEGIN OPENSSH PRIVATE KEY-----\n")
        );
        assert_eq!(vendor["write_files"][0]["content"], format!("{}\n", identity.machine_id));
    }

    #[test]
    fn free_user_data_is_handed_on_byte_for_byte() {
        let data = "#!/bin/sh\nprintf '%s' \"{name} $1\"\r\n\tx\n";
        let mut identity = identity("");
        assert_eq!(parsed(&identity.user_data()), json!({}));
        identity.spec.user_data = Some(data.to_owned());
        assert_eq!(identity.user_data(), data);
    }

    #[test]
    fn the_network_is_said_only_when_the_spec_does() {
        assert_eq!(identity("").network_config(), None);
        let config = parsed(&identity("network.interfaces = [{ dhcp4 = true }]").network_config().unwrap());
        assert_eq!((&config["version"], &config["ethernets"]["nic0"]["dhcp4"]), (&json!(2), &json!(true)));
    }
}
