//! The files of an OpenStack config drive: what cloud-init and, on Windows, Cloudbase-Init read.

use serde_json::{Map, Value, json};

use super::cloud_init::lines;
use super::facts::Identity;
use super::{File, network};

impl Identity {
    /// The files of a config drive.
    pub(super) fn config_drive(&self) -> Vec<File> {
        let mut meta = json!({ "uuid": self.instance_id, "name": self.name, "hostname": self.hostname });
        if !self.spec.authorized_keys.is_empty() {
            let named = self.spec.authorized_keys.iter().enumerate().map(|(at, key)| (format!("key-{at}"), json!(key)));
            meta["public_keys"] = Value::Object(named.collect::<Map<_, _>>());
        }
        let vendor = json!({ "cloud-init": self.vendor_data() });
        let mut files = vec![
            File { path: "openstack/latest/meta_data.json", text: lines(&meta) },
            File { path: "openstack/latest/user_data", text: self.user_data() },
            File { path: "openstack/latest/vendor_data.json", text: lines(&vendor) },
        ];
        if let Some(spec) = &self.spec.network {
            let text = lines(&network::openstack(spec, &self.mac));
            files.push(File { path: "openstack/latest/network_data.json", text });
        }
        files
    }
}
