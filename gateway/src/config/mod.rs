//! The configuration of a gateway: TOML, every key also from the environment, every unknown key an error.

mod boot;
mod limits;
mod load;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clonegate_policy_host::{Binding, Chains};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::store::{Secret, StoreConfig};
use crate::tls::Tls;

pub use boot::{Boot, UnknownMachine};
pub use limits::Limits;
pub use load::{from_text, ignored_variables, load, to_text};

/// All of it. `examples/clonegate.toml` tells each key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where names, jobs and decisions are kept; all gateways that share it are one system.
    pub home: Home,
    /// Directories and buckets whose raw images may be templates by reference, besides the datastores.
    pub sources: Vec<String>,
    /// Where to listen.
    pub listen: Listen,
    /// Certificates of NBD over TCP, and of HTTPS; without them NBD is plain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// The host memory cache in front of base reads.
    pub icache: ICache,
    /// Stores of bases and deltas. More can be added with `clonegate datastore add`.
    pub datastore: Vec<Datastore>,
    /// The journal of writes with `local` durability.
    pub journal: Journal,
    /// Which policies are asked, in order.
    pub policy: Policy,
    /// How clones are kept open.
    pub clones: Clones,
    /// Who may change things.
    pub auth: Auth,
    /// What the servers take on at a time.
    pub limits: Limits,
    /// Boot scripts and EFI programs.
    pub boot: Boot,
    /// How what makes machines themselves is kept.
    pub identity: Identity,
    /// What the gateway says about itself.
    pub log: Log,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            home: Home(StoreConfig::new("file:///var/lib/clonegate/home")),
            listen: Listen::default(),
            tls: None,
            icache: ICache::default(),
            datastore: Vec::new(),
            journal: Journal::default(),
            policy: Policy::default(),
            clones: Clones::default(),
            auth: Auth::default(),
            limits: Limits::default(),
            boot: Boot::default(),
            identity: Identity::default(),
            sources: Vec::new(),
            log: Log::default(),
        }
    }
}

/// The home: a URL, or a table with the settings of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home(pub StoreConfig);

impl Serialize for Home {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0 == StoreConfig::new(self.0.url.clone()) {
            serializer.serialize_str(&self.0.url)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Home {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Home;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a URL, or a table with `url` and the settings of the store")
            }
            fn visit_str<E: serde::de::Error>(self, url: &str) -> Result<Home, E> {
                Ok(Home(StoreConfig::new(url)))
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Home, A::Error> {
                StoreConfig::deserialize(serde::de::value::MapAccessDeserializer::new(map)).map(Home)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// HTTP: disks, control, metrics.
    pub http: String,
    /// The same under TLS, with the certificate of `tls`; empty for none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub https: String,
    /// NBD over TCP; empty for none.
    pub nbd: String,
    /// NBD over a Unix socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nbd_unix: Option<PathBuf>,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            http: "127.0.0.1:8080".to_owned(),
            https: String::new(),
            nbd: "127.0.0.1:10809".to_owned(),
            nbd_unix: None,
        }
    }
}

/// The iCache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ICache {
    /// Bytes of host memory that it may hold.
    pub memory: ByteSize,
}

impl Default for ICache {
    fn default() -> Self {
        Self { memory: ByteSize::gib(1) }
    }
}

/// One datastore: a name, a store, and what it may be used for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Datastore {
    /// Its name.
    pub name: String,
    /// `file:///directory`, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.
    pub url: String,
    /// Where the service is, when it is not the cloud's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Region of the bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Access key; without it the usual environment variables are read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key_id: Option<String>,
    /// Secret key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_access_key: Option<Secret>,
    /// Token of temporary credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_token: Option<Secret>,
    /// Whether the bucket is part of the path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_style: Option<bool>,
    /// PEM file of certificates to trust besides those of the system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// HTTP proxy to go through; `none` goes direct.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// Only one gateway ever uses it: its store does not honour put-if-absent.
    #[serde(default)]
    pub exclusive: bool,
    /// Longest wait for one small request.
    #[serde(default, with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub request_timeout: Option<Duration>,
    /// How long an operation is tried again before it is reported as unavailable.
    #[serde(default, with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub retry_for: Option<Duration>,
    /// Bytes that it may hold; without it a directory has the size of its file system, and an object store no end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<ByteSize>,
    /// Whether unwritten bytes take no space; linked clones need it.
    #[serde(default = "yes")]
    pub thin: bool,
    /// Bytes kept free for deltas that are there already.
    #[serde(default)]
    pub reserve: ByteSize,
    /// How many times its capacity may be promised to clones.
    #[serde(default = "four")]
    pub overcommit: f64,
    /// Labels, for policies.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

fn yes() -> bool {
    true
}

fn four() -> f64 {
    4.0
}

impl Datastore {
    /// A datastore with the defaults.
    pub fn new(name: impl Into<String>, url: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            url: url.into(),
            endpoint: None,
            region: None,
            access_key_id: None,
            secret_access_key: None,
            session_token: None,
            path_style: None,
            ca_file: None,
            proxy: None,
            exclusive: false,
            request_timeout: None,
            retry_for: None,
            capacity: None,
            thin: true,
            reserve: ByteSize::b(0),
            overcommit: four(),
            labels: BTreeMap::new(),
        }
    }

    /// How its store is reached.
    pub fn store(&self) -> StoreConfig {
        let usual = StoreConfig::new(self.url.clone());
        StoreConfig {
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            access_key_id: self.access_key_id.clone(),
            secret_access_key: self.secret_access_key.clone(),
            session_token: self.session_token.clone(),
            path_style: self.path_style,
            ca_file: self.ca_file.clone(),
            proxy: self.proxy.clone(),
            exclusive: self.exclusive,
            request_timeout: self.request_timeout.unwrap_or(usual.request_timeout),
            retry_for: self.retry_for.unwrap_or(usual.retry_for),
            ..usual
        }
    }
}

/// The journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Journal {
    /// A directory of this gateway alone, on a disk that syncs honestly.
    pub path: PathBuf,
}

impl Default for Journal {
    fn default() -> Self {
        Self { path: PathBuf::from("/var/lib/clonegate/journal") }
    }
}

/// Which policies are asked, in order; the built-in rules come last whatever is said here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Where a clone goes. Each entry is the name of a plugin, or a table with `plugin`, `pools`, `mode`, `settings`.
    pub placement: Vec<Binding>,
    /// When a base is full.
    pub rollover: Vec<Binding>,
    /// Whether a delta is discarded.
    pub reset: Vec<Binding>,
    /// Directory with installed plugins, as `NAME.wasm`; watched. Beside the journal when none is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plugins: Option<PathBuf>,
    /// Directory where decisions are recorded. Beside the journal when none is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decisions: Option<PathBuf>,
    /// Bytes of recorded decisions; the oldest go first.
    pub decisions_max: ByteSize,
    /// Plugins may reset persistent clones.
    pub allow_persistent_reset: bool,
}

impl Default for Policy {
    fn default() -> Self {
        let Chains { placement, rollover, reset } = Chains::default();
        Self {
            placement,
            rollover,
            reset,
            plugins: None,
            decisions: None,
            decisions_max: ByteSize::mib(256),
            allow_persistent_reset: false,
        }
    }
}

/// How clones are kept open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Clones {
    /// A clone that nobody has used for so long is closed.
    #[serde(with = "humantime_serde")]
    pub idle_close: Duration,
    /// A clean disconnect that nobody follows for so long is a power-off.
    #[serde(with = "humantime_serde")]
    pub power_off_grace: Duration,
    /// Deltas that a base takes, for templates that do not say.
    pub slots_per_base: u32,
}

impl Default for Clones {
    fn default() -> Self {
        Self {
            idle_close: Duration::from_secs(300),
            power_off_grace: Duration::from_secs(30),
            slots_per_base: clonegate_core::limits::SLOTS_PER_BASE,
        }
    }
}

/// Who may change things over HTTP.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Auth {
    /// File of lines `NAME TOKEN`; without it whoever reaches the port may do everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<PathBuf>,
}

/// How what makes machines themselves is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Identity {
    /// File with the keys that identities are encrypted with; without it they are stored plain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
}

/// What the gateway says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug`, or a filter as of `tracing-subscriber`.
    pub level: String,
    /// `text` or `json`.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Text }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}
