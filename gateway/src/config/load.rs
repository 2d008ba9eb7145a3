//! Reads the file and the environment, and says which key is wrong and which was meant.

use std::path::Path;

use clonegate_core::ids::Name;
use clonegate_core::limits::SLOTS_PER_BASE_MAX;
use clonegate_core::{Error, Result};
use figment::Figment;
use figment::error::Kind;
use figment::providers::{Env, Format, Serialized, Toml};

use super::Config;
use crate::store::check_store_url;

/// The keys that can be set by the environment: `listen.nbd_unix` as `CLONEGATE_LISTEN_NBD_UNIX`. Values are written as in TOML.
const KEYS: &[&str] = &[
    "home",
    "sources",
    "listen.http",
    "listen.https",
    "listen.nbd",
    "listen.nbd_unix",
    "icache.memory",
    "datastore",
    "tls.certificate",
    "tls.key",
    "tls.client_ca",
    "tls.required",
    "journal.path",
    "policy.placement",
    "policy.rollover",
    "policy.reset",
    "policy.plugins",
    "policy.decisions",
    "policy.decisions_max",
    "policy.allow_persistent_reset",
    "clones.idle_close",
    "clones.power_off_grace",
    "clones.slots_per_base",
    "auth.tokens",
    "limits.http_connections",
    "limits.http_threads",
    "limits.http_put_buffers",
    "limits.nbd_connections",
    "limits.nbd_threads",
    "limits.nbd_waiting",
    "boot.script",
    "boot.unknown",
    "boot.template",
    "boot.pool",
    "boot.efi",
    "identity.key_file",
    "log.level",
    "log.format",
];

/// Variables of the same prefix that are no keys: of the command line, and of the tests.
const OTHERS: &[&str] = &[
    "CLONEGATE_SERVER",
    "CLONEGATE_TOKEN",
    "CLONEGATE_CA",
    "CLONEGATE_LOG",
    "CLONEGATE_CONFIG",
    "CLONEGATE_REQUIRE_CLIENTS",
];

/// What follows what all of them begin with, which makes none nearer to another.
fn after(name: &str) -> &str {
    name.strip_prefix("CLONEGATE_").unwrap_or(name)
}

/// Of these environment variables those that look as if they were to configure something and do not, each with the one that may be meant.
pub fn ignored_variables(variables: impl Iterator<Item = String>) -> Vec<String> {
    let names: Vec<String> =
        KEYS.iter().map(|key| format!("CLONEGATE_{}", key.replace('.', "_").to_uppercase())).collect();
    let known =
        |variable: &str| OTHERS.contains(&variable) || names.iter().any(|name| name.eq_ignore_ascii_case(variable));
    let ours = variables.filter(|variable| variable.starts_with("CLONEGATE_") && !known(variable));
    let told = ours.map(|variable| {
        let nearest = names.iter().map(|name| (strsim::jaro_winkler(after(&variable), after(name)), name));
        match nearest.max_by(|a, b| a.0.total_cmp(&b.0)) {
            Some((near, name)) if near > 0.8 => format!("{variable} (did you mean {name}?)"),
            _ => variable,
        }
    });
    told.collect()
}

fn environment() -> Env {
    Env::prefixed("CLONEGATE_").filter_map(|variable| {
        let wanted = variable.as_str().to_ascii_lowercase();
        KEYS.iter().find(|key| key.replace('.', "_") == wanted).map(|key| (*key).into())
    })
}

/// The configuration from `file` (none: the defaults), overridden by the environment, and checked.
///
/// # Errors
/// `NotFound` with code `no-config` when the file is not there; `Invalid` with codes `unknown-key` or `bad-config`.
pub fn load(file: Option<&Path>) -> Result<Config> {
    let mut figment = Figment::from(Serialized::defaults(Config::default()));
    if let Some(path) = file {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Error::not_found("no-config", "the configuration cannot be read")
                .on(path.display().to_string())
                .because(e)
                .hint("examples/clonegate.toml is one to start from")
        })?;
        figment = figment.merge(Toml::string(&text));
    }
    check(figment.merge(environment()).extract().map_err(|e| explain(&e))?)
}

/// The configuration of this text alone, checked.
///
/// # Errors
/// As [`load`].
pub fn from_text(text: &str) -> Result<Config> {
    let figment = Figment::from(Serialized::defaults(Config::default())).merge(Toml::string(text));
    check(figment.extract().map_err(|e| explain(&e))?)
}

/// The configuration as TOML; secrets are hidden.
///
/// # Errors
/// `Internal` when it cannot be written, which is a bug.
pub fn to_text(config: &Config) -> Result<String> {
    toml::to_string_pretty(config).map_err(|e| Error::internal("bad-config", format!("it cannot be written: {e}")))
}

fn explain(errors: &figment::Error) -> Error {
    // figment chains errors, the last cause first; one at a time is enough to mend a file.
    let Some(first) = errors.clone().into_iter().next() else {
        return Error::invalid("bad-config", errors.to_string());
    };
    let mut path: Vec<String> = first.path.clone();
    if let Kind::UnknownField(field, known) = &first.kind {
        if path.last() != Some(field) {
            path.push(field.clone());
        }
        let error = Error::invalid("unknown-key", "there is no such key in the configuration").on(path.join("."));
        let nearest = known.iter().map(|k| (strsim::jaro_winkler(field, k), *k)).max_by(|a, b| a.0.total_cmp(&b.0));
        return match nearest {
            Some((near, key)) if near > 0.7 => error.hint(format!("did you mean `{key}`?")),
            _ => error.hint(format!("known here: {}", known.join(", "))),
        };
    }
    let error = Error::invalid("bad-config", first.kind.to_string())
        .hint("sizes are written \"64MiB\", times \"100ms\"; examples/clonegate.toml shows each key");
    if path.is_empty() { error } else { error.on(path.join(".")) }
}

fn check(config: Config) -> Result<Config> {
    let wrong = |key: &str, message: &str| Err(Error::invalid("bad-config", message).on(key));
    let mut names = std::collections::BTreeSet::new();
    let mut places = std::collections::BTreeSet::new();
    check_store_url(&config.home.0.url)?;
    config.sources.iter().try_for_each(|url| check_store_url(url))?;
    for datastore in &config.datastore {
        Name::new(datastore.name.as_str())?;
        if !names.insert(datastore.name.as_str()) {
            return wrong(&format!("datastore.{}", datastore.name), "two datastores have this name");
        }
        if datastore.url.is_empty() {
            return wrong(&format!("datastore.{}", datastore.name), "it has no url");
        }
        // Here, before anything is entered anywhere: what stands in a catalog is hard to take back.
        check_store_url(&datastore.url)?;
        let place = datastore.url.trim_end_matches('/');
        if place != "memory:" && !places.insert((place, datastore.endpoint.as_deref())) {
            return wrong(&format!("datastore.{}", datastore.name), "two datastores have this url");
        }
        if !(1.0..=1000.0).contains(&datastore.overcommit) {
            return wrong(&format!("datastore.{}.overcommit", datastore.name), "it is from 1 to 1000");
        }
    }
    if config.listen.http.is_empty() {
        return wrong("listen.http", "a gateway needs an address for HTTP");
    }
    config.limits.check()?;
    if !(1..=SLOTS_PER_BASE_MAX).contains(&config.clones.slots_per_base) {
        return wrong("clones.slots_per_base", &format!("it is from 1 to {SLOTS_PER_BASE_MAX}"));
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> Error {
        from_text(text).unwrap_err()
    }

    #[test]
    fn an_unknown_key_is_named_with_the_nearest_known_one() {
        for (text, object, hint) in [
            ("[listen]\nhtpp = 'x'", "listen.htpp", "did you mean `http`?"),
            ("hom = 'file:///x'", "hom", "did you mean `home`?"),
            ("[[datastore]]\nname = 'a'\nurl = 'memory:///'\nthinn = true", "thinn", "did you mean `thin`?"),
        ] {
            let error = refused(text);
            assert_eq!(error.code(), "unknown-key", "{text}: {error}");
            assert!(error.object().unwrap().ends_with(object), "{error}");
            assert_eq!(error.what_to_do(), Some(hint), "{error}");
        }
    }

    #[test]
    fn every_key_can_be_set_by_the_environment() {
        // What there is, each reader itself says when it is given what there is not.
        let known = |text: &str| -> Vec<String> {
            let figment = Figment::from(Serialized::defaults(Config::default())).merge(Toml::string(text));
            let error = figment.extract::<Config>().unwrap_err().into_iter().next().unwrap();
            let Kind::UnknownField(_, known) = error.kind else { panic!("{text}: {error}") };
            known.iter().map(|key| (*key).to_owned()).collect()
        };
        let sections = known("zzz = 1");
        assert!(sections.len() > 10, "{sections:?}");
        for section in sections {
            if ["home", "sources", "datastore"].contains(&section.as_str()) {
                assert!(KEYS.contains(&section.as_str()));
                continue;
            }
            for key in known(&format!("[{section}]\nzzz = 1")) {
                let key = format!("{section}.{key}");
                assert!(KEYS.contains(&key.as_str()), "{key} cannot be set by the environment");
            }
        }
    }

    #[test]
    fn a_variable_that_is_no_key_is_told_with_the_one_that_may_be_meant() {
        let all = ["CLONEGATE_LISTEN_HTPP", "CLONEGATE_LISTEN_NBD", "CLONEGATE_TOKEN", "PATH", "CLONEGATE_X"];
        let told = ignored_variables(all.iter().map(|name| (*name).to_owned()));
        assert_eq!(told, ["CLONEGATE_LISTEN_HTPP (did you mean CLONEGATE_LISTEN_HTTP?)", "CLONEGATE_X"]);
    }

    #[test]
    fn sizes_and_times_are_written_as_people_do() {
        let config = from_text("[icache]\nmemory = '64MiB'\n[clones]\nidle_close = '100ms'").unwrap();
        assert_eq!(config.icache.memory.as_u64(), 64 << 20);
        assert_eq!(config.clones.idle_close, std::time::Duration::from_millis(100));
    }

    #[test]
    fn what_is_printed_can_be_read_again() {
        let text = to_text(&Config::default()).unwrap();
        assert_eq!(from_text(&text).unwrap(), Config::default());
    }

    #[test]
    fn the_home_is_a_url_or_a_table() {
        assert_eq!(from_text("home = 's3://b/p'").unwrap().home.0.url, "s3://b/p");
        let config = from_text("home = { url = 's3://b/p', endpoint = 'http://127.0.0.1:9000' }").unwrap();
        assert_eq!(config.home.0.endpoint.as_deref(), Some("http://127.0.0.1:9000"));
    }

    #[test]
    fn nonsense_is_refused_with_the_key() {
        for (text, object) in [
            ("[clones]\nslots_per_base = 0", "clones.slots_per_base"),
            ("[icache]\nmemory = 'much'", "icache.memory"),
            ("[[datastore]]\nname = 'a'\nurl = ''", "datastore.a"),
            ("[[datastore]]\nname = 'a'\nurl = 'ftp://x'", "ftp://x"),
            ("home = 'file:relative'", "file:relative"),
            ("[[datastore]]\nname = 'a'\nurl = 's3://KEY:SECRET@b'", "(a url with credentials)"),
            (
                "[[datastore]]\nname = 'a'\nurl = 's3://b/x'\n[[datastore]]\nname = 'b'\nurl = 's3://b/x/'",
                "datastore.b",
            ),
        ] {
            assert_eq!(refused(text).object(), Some(object), "{text}: {}", refused(text));
        }
    }
}
