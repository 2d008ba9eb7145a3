//! From a URL and settings to an object store.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use clonegate_core::{Error, Result};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, Certificate, ClientOptions, ObjectStore, RetryConfig};
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;

use super::config::{Secret, StoreConfig};
use super::keys::{self, Key};
use super::tls;
use super::{directory, errors};

/// How long an unused connection is kept.
const POOL_IDLE: Duration = Duration::from_secs(20);

/// A store before it is counted and watched.
pub(super) struct Opened {
    pub(super) objects: Arc<dyn ObjectStore>,
    pub(super) label: String,
    pub(super) directory: Option<PathBuf>,
}

/// A URL taken apart: `scheme://authority/path`.
struct Parts<'a> {
    scheme: &'a str,
    authority: &'a str,
    path: &'a str,
}

pub(super) fn open(config: &StoreConfig) -> Result<Opened> {
    let parts = split(&config.url)?;
    let label = config.url.trim_end_matches('/').to_owned();
    match parts.scheme {
        "file" => open_directory(&parts, label),
        "memory" => open_memory(&parts, label),
        "s3" | "gs" | "az" => open_service(config, &parts, label),
        other => Err(bad_url(&config.url, format!("{other:?} is not a kind of store"))),
    }
}

/// Whether a URL can be that of a store, without opening it.
///
/// # Errors
/// `Invalid` with code `bad-store-url`; credentials in a URL are not repeated.
pub fn check_store_url(url: &str) -> Result<()> {
    let parts = split(url)?;
    match parts.scheme {
        "file" if !decode(url, parts.path)?.starts_with('/') => {
            Err(bad_url(url, "the directory must begin with a slash".to_owned()))
        }
        "file" | "memory" => Ok(()),
        "s3" | "gs" | "az" => prefix_of(url, parts.path).map(drop),
        other => Err(bad_url(url, format!("{other:?} is not a kind of store"))),
    }
}

/// Splits the URL of one object into the URL of the store that holds it (`s3://bucket`, `file:///directory`) and its key.
///
/// # Errors
/// `Invalid` with code `bad-store-url` or `bad-key`.
pub fn split_object_url(url: &str) -> Result<(String, Key)> {
    let parts = split(url)?;
    let (store, key) = match parts.scheme {
        "file" => {
            let (directory, file) = parts.path.rsplit_once('/').unwrap_or(("", parts.path));
            (format!("file:///{}", directory.trim_start_matches('/')), decode(url, file)?)
        }
        scheme => (format!("{scheme}://{}", parts.authority), decode(url, parts.path)?),
    };
    Ok((store, keys::foreign(&key)?))
}

fn split(url: &str) -> Result<Parts<'_>> {
    let (scheme, rest) = url.split_once("://").ok_or_else(|| bad_url(url, "it has no scheme".to_owned()))?;
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    if authority.contains('@') {
        return Err(bad_url("(a url with credentials)", "credentials do not belong in the url".to_owned()));
    }
    if matches!(scheme, "s3" | "gs" | "az") && authority.is_empty() {
        return Err(bad_url(url, "it names no bucket".to_owned()));
    }
    if scheme == "file" && !(authority.is_empty() || authority == "localhost") {
        return Err(bad_url(url, format!("a directory needs three slashes: file:///{authority}{path}")));
    }
    if path.contains(['?', '#']) {
        return Err(bad_url(url, "a query or a fragment means nothing here".to_owned()));
    }
    Ok(Parts { scheme, authority, path })
}

fn bad_url(url: &str, why: String) -> Error {
    Error::invalid("bad-store-url", format!("not the url of a store: {why}"))
        .on(url)
        .hint("use file:///directory, memory://, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix")
}

fn bad_setting(url: &str, cause: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::invalid("bad-store-setting", "the settings of the store do not fit").on(url).because(cause)
}

fn decode(url: &str, text: &str) -> Result<String> {
    let decoded = percent_decode_str(text).decode_utf8().map_err(|e| bad_url(url, e.to_string()))?;
    Ok(decoded.into_owned())
}

fn prefix_of(url: &str, path: &str) -> Result<Path> {
    Path::parse(decode(url, path)?.trim_matches('/')).map_err(|e| bad_url(url, e.to_string()))
}

fn open_directory(parts: &Parts<'_>, label: String) -> Result<Opened> {
    let root = PathBuf::from(decode(&label, parts.path)?);
    if !root.is_absolute() {
        return Err(bad_url(&label, "the directory must begin with a slash".to_owned()));
    }
    directory::make(&root).map_err(|e| {
        let failure = errors::by_io(e.kind(), e.raw_os_error());
        failure.error.on(&label).because(e)
    })?;
    let root = root.canonicalize().map_err(|e| bad_setting(&label, e))?;
    let store = LocalFileSystem::new_with_prefix(&root).map_err(|e| bad_setting(&label, e))?;
    let store = store.with_fsync(true).with_automatic_cleanup(true);
    Ok(Opened { objects: Arc::new(store), label, directory: Some(root) })
}

/// `memory://` is a store of its own at each opening; `memory://name` is one store for the whole process.
fn open_memory(parts: &Parts<'_>, label: String) -> Result<Opened> {
    static NAMED: LazyLock<Mutex<HashMap<String, Arc<InMemory>>>> = LazyLock::new(Mutex::default);
    let memory = if parts.authority.is_empty() {
        Arc::default()
    } else {
        Arc::clone(NAMED.lock().entry(parts.authority.to_owned()).or_default())
    };
    let prefix = prefix_of(&label, parts.path)?;
    let label = if parts.authority.is_empty() { "memory:".to_owned() } else { label };
    Ok(Opened { objects: under(memory, prefix), label, directory: None })
}

fn under<S: ObjectStore>(store: S, prefix: Path) -> Arc<dyn ObjectStore> {
    if prefix.as_ref().is_empty() { Arc::new(store) } else { Arc::new(PrefixStore::new(store, prefix)) }
}

fn open_service(config: &StoreConfig, parts: &Parts<'_>, label: String) -> Result<Opened> {
    tls::install_provider();
    check_settings(config, parts, &label)?;
    let prefix = prefix_of(&label, parts.path)?;
    let client = client(config, &label)?;
    // Retrying is done by us alone, so that a deadline is a deadline and a count is a count.
    let retry = RetryConfig { backoff: BackoffConfig::default(), max_retries: 0, ..RetryConfig::default() };
    let wrong = |e| bad_setting(&label, e).hint(HINTS.iter().find(|h| h.0 == parts.scheme).map_or("", |h| h.1));
    let objects = match parts.scheme {
        "s3" => under(s3(config, parts.authority, client, retry).build().map_err(wrong)?, prefix),
        "gs" => under(gcs(config, parts.authority, client, retry).build().map_err(wrong)?, prefix),
        _ => under(azure(config, parts.authority, client, retry).build().map_err(wrong)?, prefix),
    };
    Ok(Opened { objects, label, directory: None })
}

/// Where each kind of service gets its account and key from.
const HINTS: [(&str, &str); 3] = [
    ("s3", "set access_key_id and secret_access_key for it, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    ("gs", "GOOGLE_APPLICATION_CREDENTIALS names the key file of a service account, or secret_access_key has its JSON"),
    (
        "az",
        "access_key_id is the storage account and secret_access_key its key, or set AZURE_STORAGE_ACCOUNT_NAME and \
         AZURE_STORAGE_ACCOUNT_KEY",
    ),
];

/// What the builders below would take, or report in their own words only when the first request fails.
fn check_settings(config: &StoreConfig, parts: &Parts<'_>, label: &str) -> Result<()> {
    let wrong = |why: String| Error::invalid("bad-store-setting", why).on(label);
    if let Some(endpoint) = &config.endpoint {
        let host = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
        let Some(host) = host.filter(|host| !host.is_empty()) else {
            let why = format!("endpoint {endpoint:?} is no http:// or https:// url");
            return Err(wrong(why).hint(format!("write endpoint = \"http://{endpoint}\" or \"https://{endpoint}\"")));
        };
        if host.contains('@') {
            return Err(wrong("credentials do not belong in the endpoint".to_owned()));
        }
        if parts.scheme == "s3" && host.trim_end_matches('/').contains('/') {
            let hint = "the endpoint is the service alone; the bucket stands in the url: s3://bucket/prefix";
            return Err(wrong(format!("endpoint {endpoint:?} has a path")).hint(hint));
        }
    }
    if config.access_key_id.is_some() != config.secret_access_key.is_some() && parts.scheme != "gs" {
        return Err(wrong("access_key_id and secret_access_key are given both or neither".to_owned()));
    }
    if config.session_token.is_some() && config.access_key_id.is_none() {
        return Err(wrong("session_token is given without access_key_id".to_owned()));
    }
    let of_environment = |names: &[&str]| names.iter().any(|name| std::env::var_os(name).is_some());
    // Without any, the metadata service of a cloud is asked, which outside of one is a long wait for nothing.
    const AWS: [&str; 4] = [
        "AWS_ACCESS_KEY_ID",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ];
    if parts.scheme == "s3" && config.endpoint.is_some() && config.access_key_id.is_none() && !of_environment(&AWS) {
        return Err(Error::denied("no-credentials", "there are no credentials for this store").on(label).hint(
            "set access_key_id and secret_access_key for it, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the \
             environment of the gateway",
        ));
    }
    Ok(())
}

fn client(config: &StoreConfig, label: &str) -> Result<ClientOptions> {
    let plain = config.endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    // Our own deadline covers a request, as it grows with the body; a fixed one would cut large bodies off.
    let mut client = ClientOptions::new()
        .with_timeout_disabled()
        .with_connect_timeout(config.connect_timeout)
        .with_pool_max_idle_per_host(super::IN_FLIGHT_MAX)
        // Sooner than services and proxies close theirs (a minute, mostly), so that a request seldom meets a closed one.
        .with_pool_idle_timeout(POOL_IDLE)
        .with_allow_http(plain);
    if let Some(file) = &config.ca_file {
        let unreadable = |why: String| {
            Error::invalid("bad-ca-file", format!("ca_file holds no certificate: {why}"))
                .on(file.display().to_string())
                .hint("ca_file is a PEM file: -----BEGIN CERTIFICATE-----")
        };
        let pem = std::fs::read(file).map_err(|e| unreadable(e.to_string()))?;
        let certificates = Certificate::from_pem_bundle(&pem).map_err(|e| unreadable(e.to_string()))?;
        if certificates.is_empty() {
            return Err(unreadable("it has none".to_owned()));
        }
        for certificate in certificates {
            client = client.with_root_certificate(certificate);
        }
    }
    match config.proxy.as_deref() {
        None => {}
        // A proxy that no host goes through: "*" alone would mean names and not addresses.
        Some("none") => client = client.with_proxy_url("http://0.0.0.0:0").with_proxy_excludes("*,0.0.0.0/0,::/0"),
        Some(proxy) if proxy.starts_with("http://") || proxy.starts_with("https://") => {
            client = client.with_proxy_url(proxy);
        }
        Some(proxy) => {
            return Err(Error::invalid("bad-store-setting", format!("proxy {proxy:?} is no http:// url")).on(label));
        }
    }
    Ok(client)
}

fn s3(config: &StoreConfig, bucket: &str, client: ClientOptions, retry: RetryConfig) -> AmazonS3Builder {
    let mut builder = AmazonS3Builder::from_env();
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
    }
    if let Some(region) = &config.region {
        builder = builder.with_region(region);
    }
    if let (Some(id), Some(secret)) = (&config.access_key_id, &config.secret_access_key) {
        builder = builder.with_access_key_id(id).with_secret_access_key(secret.reveal());
        if let Some(token) = &config.session_token {
            builder = builder.with_token(token.reveal());
        }
    }
    let path_style = config.path_style.unwrap_or(config.endpoint.is_some());
    builder
        .with_bucket_name(bucket)
        .with_virtual_hosted_style_request(!path_style)
        .with_disable_bulk_delete(true)
        .with_client_options(client)
        .with_retry(retry)
}

fn gcs(config: &StoreConfig, bucket: &str, client: ClientOptions, retry: RetryConfig) -> GoogleCloudStorageBuilder {
    let mut builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket);
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_base_url(endpoint);
    }
    if let Some(key) = config.secret_access_key.as_ref().map(Secret::reveal) {
        builder = builder.with_service_account_key(key);
    }
    builder.with_client_options(client).with_retry(retry)
}

fn azure(config: &StoreConfig, container: &str, client: ClientOptions, retry: RetryConfig) -> MicrosoftAzureBuilder {
    let mut builder = MicrosoftAzureBuilder::from_env().with_container_name(container);
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    if let Some(account) = &config.access_key_id {
        builder = builder.with_account(account);
    }
    if let Some(key) = config.secret_access_key.as_ref().map(Secret::reveal) {
        builder = builder.with_access_key(key);
    }
    builder.with_client_options(client).with_retry(retry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::store::Store;

    #[test]
    fn each_kind_of_url_opens() {
        for url in ["memory://", "s3://vdi/fast", "s3://vdi"] {
            let config = StoreConfig {
                access_key_id: Some("key".into()),
                secret_access_key: Some(Secret::new("hunter2")),
                endpoint: Some("http://127.0.0.1:1".into()),
                ..StoreConfig::new(url)
            };
            let store = Store::open(&config, &Clock::system()).unwrap();
            assert!(!format!("{store:?}").contains("hunter2"));
        }
    }

    #[test]
    fn what_is_no_store_is_refused_with_what_to_use() {
        for url in ["", "vdi", "ftp://x/y", "s3://", "s3:///x", "file://tmp/x", "s3://key:secret@bucket", "s3://b/x?y"]
        {
            let error = Store::open(&StoreConfig::new(url), &Clock::system()).unwrap_err();
            assert_eq!(error.code(), "bad-store-url", "{url}");
            assert!(!error.to_string().contains("secret@"), "{error}");
        }
    }

    #[test]
    fn settings_that_cannot_work_are_refused_before_anything_is_asked() {
        let keys = StoreConfig {
            access_key_id: Some("key".into()),
            secret_access_key: Some(Secret::new("hunter2")),
            ..StoreConfig::new("s3://vdi")
        };
        let endpoint = |endpoint: &str| StoreConfig { endpoint: Some(endpoint.into()), ..keys.clone() };
        for (config, code) in [
            (endpoint("minio:9000"), "bad-store-setting"),
            (endpoint("http://"), "bad-store-setting"),
            (endpoint("http://minio:9000/vdi"), "bad-store-setting"),
            (endpoint("http://key:hunter2@minio:9000"), "bad-store-setting"),
            (StoreConfig { secret_access_key: None, ..keys.clone() }, "bad-store-setting"),
            (StoreConfig { proxy: Some("proxy:3128".into()), ..keys.clone() }, "bad-store-setting"),
            (StoreConfig { ca_file: Some("/nonexistent.pem".into()), ..keys.clone() }, "bad-ca-file"),
            (
                StoreConfig { endpoint: Some("http://minio:9000".into()), ..StoreConfig::new("s3://vdi") },
                "no-credentials",
            ),
        ] {
            let error = Store::open(&config, &Clock::system()).unwrap_err();
            assert_eq!(error.code(), code, "{error}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        assert!(Store::open(&endpoint("http://minio:9000/"), &Clock::system()).is_ok());
    }

    #[test]
    fn a_service_whose_account_or_key_is_missing_says_where_they_come_from() {
        let azure = |account: Option<&str>, key: Option<&str>| StoreConfig {
            access_key_id: account.map(Into::into),
            secret_access_key: key.map(Secret::new),
            ..StoreConfig::new("az://container/x")
        };
        let google =
            StoreConfig { secret_access_key: Some(Secret::new("no JSON")), ..StoreConfig::new("gs://bucket/x") };
        for (config, word) in [
            (azure(None, None), "AZURE_STORAGE_ACCOUNT_NAME"),
            (azure(Some("account"), Some("not base64!")), "AZURE_STORAGE_ACCOUNT_KEY"),
            (google, "GOOGLE_APPLICATION_CREDENTIALS"),
        ] {
            let error = Store::open(&config, &Clock::system()).unwrap_err();
            assert_eq!(error.code(), "bad-store-setting", "{error}");
            assert!(error.what_to_do().unwrap().contains(word), "{error}");
            assert!(!error.to_string().contains("not base64!"), "{error}");
        }
    }

    #[test]
    fn an_object_url_is_split_into_store_and_key() {
        for (url, store, key) in [
            ("s3://vdi/images/win%2011.raw", "s3://vdi", "images/win 11.raw"),
            ("file:///srv/images/win11.raw", "file:///srv/images", "win11.raw"),
            ("memory://shared/x", "memory://shared", "x"),
        ] {
            let (got_store, got_key) = split_object_url(url).unwrap();
            assert_eq!((got_store.as_str(), got_key.as_str()), (store, key));
        }
        assert_eq!(split_object_url("s3://vdi/").unwrap_err().code(), "bad-key");
        assert_eq!(split_object_url("/srv/x.raw").unwrap_err().code(), "bad-store-url");
    }
}
