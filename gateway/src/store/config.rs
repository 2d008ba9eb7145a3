//! What an operator says about one store: its URL and how to reach it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One store, as in the configuration file and in the catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// `file:///directory`, `memory://`, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.
    pub url: String,
    /// Where the service is, when it is not the cloud's own: `http://127.0.0.1:9000`.
    pub endpoint: Option<String>,
    /// Region of the bucket; S3 services of one's own mostly take any.
    pub region: Option<String>,
    /// Access key (S3), account name (Azure). Without it the usual environment variables are read.
    pub access_key_id: Option<String>,
    /// Secret key (S3), account key (Azure), service account JSON (GCS).
    pub secret_access_key: Option<Secret>,
    /// Token of temporary S3 credentials.
    pub session_token: Option<Secret>,
    /// `true`: `http://endpoint/bucket/key`, which every service of one's own understands and is the default with an
    /// endpoint; `false`: `http://bucket.endpoint/key`.
    pub path_style: Option<bool>,
    /// PEM file of certificates to trust besides those of the system.
    pub ca_file: Option<PathBuf>,
    /// HTTP proxy to go through. Without it `HTTPS_PROXY` and its kin are obeyed; `"none"` goes direct whatever they say.
    pub proxy: Option<String>,
    /// Only one gateway ever uses this store, so that its put-if-absent need not work between gateways.
    pub exclusive: bool,
    /// Longest wait for a TCP connection.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// Longest wait for one request of small size; a large body adds a second for each MiB.
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    /// How long an operation is tried again before it is reported as unavailable.
    #[serde(with = "humantime_serde")]
    pub retry_for: Duration,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            endpoint: None,
            region: None,
            access_key_id: None,
            secret_access_key: None,
            session_token: None,
            path_style: None,
            ca_file: None,
            proxy: None,
            exclusive: false,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            retry_for: Duration::from_secs(30),
        }
    }
}

impl StoreConfig {
    /// The store at `url` with the defaults.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), ..Self::default() }
    }
}

const HIDDEN: &str = "(hidden)";

/// A text that is never shown: neither by `Debug` nor in JSON or TOML. Binary formats carry it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes the text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the one who signs with it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let shown = if serializer.is_human_readable() { HIDDEN } else { &self.0 };
        serializer.serialize_str(shown)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == HIDDEN {
            return Err(D::Error::custom("a hidden secret cannot be read back: give the secret itself"));
        }
        Ok(Self(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secretive() -> StoreConfig {
        StoreConfig { secret_access_key: Some(Secret::new("hunter2")), ..StoreConfig::new("s3://vdi/fast") }
    }

    #[test]
    fn a_secret_is_neither_debugged_nor_printed() {
        let config = secretive();
        assert!(!format!("{config:?}").contains("hunter2"));
        assert!(!serde_json::to_string(&config).unwrap().contains("hunter2"));
        assert!(!toml::to_string(&config).unwrap().contains("hunter2"));
        assert_eq!(config.secret_access_key.unwrap().reveal(), "hunter2");
    }

    #[test]
    fn a_hidden_secret_is_not_taken_for_the_secret() {
        let text = toml::to_string(&secretive()).unwrap();
        assert!(toml::from_str::<StoreConfig>(&text).unwrap_err().to_string().contains("give the secret itself"));
    }

    #[test]
    fn a_url_is_enough_and_an_unknown_setting_is_refused() {
        let config: StoreConfig = toml::from_str("url = 's3://vdi/fast'\nrequest_timeout = '3s'").unwrap();
        assert_eq!(
            config,
            StoreConfig { request_timeout: Duration::from_secs(3), ..StoreConfig::new("s3://vdi/fast") }
        );
        assert!(toml::from_str::<StoreConfig>("url = 's3://vdi'\nendpiont = 'x'").is_err());
    }
}
