//! A gateway that runs in this process: everything that `up` and `serve` start and stop.

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clonegate_core::ids::{GatewayId, Name};
use clonegate_core::{Error, Result};
use clonegate_policy_host::{Chains, Compiler, HostSettings, LinkStatus};
use tokio::signal::unix::{SignalKind, signal};

use crate::clock::Clock;
use crate::config::{self, Config, Limits};
use crate::delta::DeltaSettings;
use crate::exports::Exports;
use crate::http::{self, BootSettings, HttpServer, HttpSettings, Secure, Tokens};
use crate::identity::IdentityKeys;
use crate::lifecycle::views::to_labels;
use crate::lifecycle::{DatastoreSettings, Gateway, GatewaySettings};
use crate::metrics::{Kind, Metrics, Sample};
use crate::nbd::{self, NbdServer, NbdSettings, NbdStats};
use crate::policy::Policies;
use crate::store::{Count, Operation};
use crate::tls::{self, Clients, Tls};

/// Files and sockets that the process may have open, if the system permits so many.
const OPEN_FILES: u64 = 1 << 20;
/// How long a stop may take before it is given up.
const STOP_WITHIN: Duration = Duration::from_secs(60);

/// A gateway without its sockets.
pub(super) struct Prepared {
    pub(super) gateway: Arc<Gateway>,
    policies: Policies,
    clock: Clock,
    http: SocketAddr,
    https: Option<Secure>,
    nbd: Option<SocketAddr>,
    nbd_unix: Option<PathBuf>,
    tls: Option<Tls>,
    boot: BootSettings,
    tokens: Option<Arc<Tokens>>,
    limits: Limits,
}

/// A gateway that serves.
pub(super) struct Running {
    pub(super) gateway: Arc<Gateway>,
    http: HttpServer,
    nbd: Option<NbdServer>,
}

/// Starts everything but the sockets. That their addresses are free is checked first, so that nothing is done in vain.
pub(super) async fn prepare(config: &Config) -> Result<Prepared> {
    raise_file_limit();
    if let ignored @ [_, ..] = ignored_variables().as_slice() {
        tracing::warn!(
            variables = ignored.join(", "),
            "no keys of the configuration have these names: they are ignored"
        );
    }
    let nbd_port = |at: SocketAddr| Some(at.port()).filter(|port| *port != 0);
    let http = address("listen.http", &config.listen.http)?;
    let https = secure(config)?;
    let nbd = match config.listen.nbd.as_str() {
        "" => None,
        text => Some(address("listen.nbd", text)?),
    };
    let boot = config.boot.settings(nbd.and_then(nbd_port))?;
    let tokens = config.auth.tokens.as_deref().map(Tokens::load).transpose()?.map(Arc::new);
    check_free(http)?;
    https.as_ref().map_or(Ok(()), |https| check_free(https.listen))?;
    nbd.map_or(Ok(()), check_free)?;
    let clock = Clock::system();
    let policies = Policies::start(host_settings(config)?, clock.clone())?;
    let keys = config.identity.key_file.as_deref().map(IdentityKeys::load).transpose()?;
    let gateway = Gateway::start(settings(config, &clock)?, Arc::new(policies.clone()), clock.clone()).await?;
    keys.into_iter().for_each(|keys| gateway.keep_identity_keys(keys));
    Ok(Prepared {
        gateway,
        policies,
        clock,
        http,
        https,
        nbd,
        nbd_unix: config.listen.nbd_unix.clone(),
        tls: config.tls.clone(),
        boot,
        tokens,
        limits: config.limits.clone(),
    })
}

/// Variables of the environment that look as if they were to configure something and do not.
pub(super) fn ignored_variables() -> Vec<String> {
    config::ignored_variables(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()))
}

/// Reads the files that a configuration names, as a start does.
pub(super) fn check_files(config: &Config) -> Result<()> {
    config.boot.settings(None)?;
    config.auth.tokens.as_deref().map(Tokens::load).transpose()?;
    config.identity.key_file.as_deref().map(IdentityKeys::load).transpose()?;
    config.tls.as_ref().map(|tls| tls::acceptor(tls, Clients::Certified, b"")).transpose()?;
    secure(config).map(drop)
}

/// Where HTTPS is served, and with which certificate.
fn secure(config: &Config) -> Result<Option<Secure>> {
    match (config.listen.https.as_str(), &config.tls) {
        ("", _) => Ok(None),
        (text, Some(tls)) => Ok(Some(Secure { listen: address("listen.https", text)?, tls: tls.clone() })),
        (_, None) => Err(Error::invalid("bad-config", "HTTPS needs a certificate")
            .on("listen.https")
            .hint("give `certificate` and `key` in the section [tls]")),
    }
}

impl Prepared {
    /// Opens the sockets.
    pub(super) async fn serve(self) -> Result<Running> {
        let metrics = Metrics::new();
        show_gateway(&metrics, &self.gateway);
        show_policies(&metrics, &self.policies);
        let exports: Arc<dyn Exports> = Arc::clone(&self.gateway) as _;
        // Before HTTP: whoever is answered there may go on by NBD at once.
        let nbd = if self.nbd.is_none() && self.nbd_unix.is_none() {
            None
        } else {
            let settings = NbdSettings { listen: self.nbd, unix: self.nbd_unix, tls: self.tls, ..self.limits.nbd() };
            let server = nbd::serve(settings, Arc::clone(&exports)).await?;
            show_nbd(&metrics, &server.stats());
            Some(server)
        };
        let policies = Some(Arc::clone(self.policies.host()));
        let (boot, tokens) = (self.boot, self.tokens);
        let secure = self.https;
        let settings = HttpSettings { listen: self.http, secure, policies, boot, tokens, ..self.limits.http() };
        if settings.tokens.is_none() && !self.http.ip().is_loopback() {
            tracing::warn!(address = %self.http, "whoever reaches this address may change and delete everything: `auth.tokens` of the configuration asks for tokens");
        }
        let gateway = Some(Arc::clone(&self.gateway));
        let http = http::serve(&settings, exports, gateway, &metrics, &self.clock)?;
        Ok(Running { gateway: self.gateway, http, nbd })
    }
}

impl Running {
    /// Where HTTP is served.
    pub(super) fn http(&self) -> SocketAddr {
        self.http.local_addr()
    }

    /// Where HTTPS is served.
    pub(super) fn https(&self) -> Option<SocketAddr> {
        self.http.secure_addr()
    }

    /// Where NBD is served by TCP.
    pub(super) fn nbd(&self) -> Option<SocketAddr> {
        self.nbd.as_ref().and_then(NbdServer::local_addr)
    }

    /// Serves until SIGINT or SIGTERM, then stops: no new connections, answers under way finish, volumes are flushed and closed.
    pub(super) async fn until_stopped(self) -> Result<()> {
        let broken = |e: std::io::Error| Error::internal("no-signals", "signals cannot be waited for").because(e);
        let mut interrupt = signal(SignalKind::interrupt()).map_err(broken)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(broken)?;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::info!("stopping");
        let Self { gateway, http, nbd } = self;
        // Those who listen to events would keep their connections otherwise.
        gateway.events().close();
        let stop = async {
            if let Some(nbd) = nbd {
                nbd.shutdown().await;
            }
            http.shutdown().await;
            gateway.stop().await;
        };
        // A second signal, or a store that does not answer, must not keep the process for ever: what was acknowledged is in the journal.
        tokio::select! {
            stopped = tokio::time::timeout(STOP_WITHIN, stop) => {
                if stopped.is_err() {
                    tracing::warn!("not everything was closed in time; it is recovered at the next start");
                }
            }
            _ = interrupt.recv() => tracing::warn!("stopped at once; what was acknowledged is recovered at the next start"),
        }
        Ok(())
    }
}

fn address(key: &str, text: &str) -> Result<SocketAddr> {
    let wrong = |why: String| {
        Error::invalid("bad-address", format!("{text:?} is no address to listen on: {why}"))
            .on(key.to_owned())
            .hint("write HOST:PORT, as 127.0.0.1:8080")
    };
    let mut addresses = text.to_socket_addrs().map_err(|e| wrong(e.to_string()))?;
    addresses.next().ok_or_else(|| wrong("it has none".to_owned()))
}

fn check_free(address: SocketAddr) -> Result<()> {
    std::net::TcpListener::bind(address).map(drop).map_err(|e| {
        let in_use = e.kind() == std::io::ErrorKind::AddrInUse;
        let (code, what) = if in_use {
            ("address-in-use", "another program listens there")
        } else {
            ("cannot-listen", "it cannot be listened on")
        };
        let error = Error::unavailable(code, what).on(address.to_string());
        if in_use {
            error.hint("end that program, or choose another port with --listen or --nbd")
        } else {
            error.because(e)
        }
    })
}

fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let most = now.maximum.unwrap_or(OPEN_FILES).min(OPEN_FILES);
    if now.current.is_some_and(|current| current < most) {
        let raised = Rlimit { current: Some(most), maximum: now.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::debug!(%error, "the limit of open files stays as it is");
        }
    }
}

/// This gateway's lasting identity: made at the first start, kept beside the journal, which is of this gateway alone too.
pub(super) fn identity(journal: &Path, clock: &Clock) -> Result<GatewayId> {
    let path = journal.with_extension("gateway");
    let failed = |e: std::io::Error| {
        Error::unavailable("no-identity", "the gateway's identity cannot be kept there")
            .on(path.display().to_string())
            .because(e)
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map_err(|e: Error| e.on(path.display().to_string())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent).map_err(failed)?;
            }
            let id: GatewayId = clock.id();
            std::fs::write(&path, format!("{id}\n")).map_err(failed)?;
            Ok(id)
        }
        Err(e) => Err(failed(e)),
    }
}

fn delta_settings(config: &Config) -> DeltaSettings {
    DeltaSettings { journal: Some(config.journal.path.clone()), ..DeltaSettings::default() }
}

/// What this host calls itself, for messages.
pub(super) fn host_name() -> String {
    let said = std::fs::read_to_string("/proc/sys/kernel/hostname");
    said.map_or_else(|_| "this host".to_owned(), |name| name.trim().to_owned())
}

/// Plugins and decisions lie beside the journal unless the configuration says where.
pub(super) fn host_settings(config: &Config) -> Result<HostSettings> {
    let policy = &config.policy;
    let beside = |path: &Option<PathBuf>, name: &str| match path {
        Some(path) => path.clone(),
        None => config.journal.path.with_file_name(name),
    };
    Ok(HostSettings {
        chains: Chains {
            placement: policy.placement.clone(),
            rollover: policy.rollover.clone(),
            reset: policy.reset.clone(),
        },
        allow_persistent_reset: policy.allow_persistent_reset,
        records: Some((beside(&policy.decisions, "decisions"), policy.decisions_max.as_u64())),
        plugins: Some(beside(&policy.plugins, "plugins")),
        compiler: Compiler::this_program()?,
        ..HostSettings::default()
    })
}

fn settings(config: &Config, clock: &Clock) -> Result<GatewaySettings> {
    let datastore = |d: &crate::config::Datastore| -> Result<DatastoreSettings> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the configuration was checked to be from 1 to 1000"
        )]
        let overcommit_percent = (d.overcommit * 100.0).round() as u32;
        Ok(DatastoreSettings {
            capacity: d.capacity.map(|c| c.as_u64()),
            thin: d.thin,
            reserve: d.reserve.as_u64(),
            overcommit_percent,
            labels: to_labels(&d.labels),
            ..DatastoreSettings::new(Name::new(d.name.as_str())?, d.store())
        })
    };
    Ok(GatewaySettings {
        home: config.home.0.clone(),
        datastores: config.datastore.iter().map(datastore).collect::<Result<_>>()?,
        sources: config.sources.iter().map(crate::store::StoreConfig::new).collect(),
        gateway: identity(&config.journal.path, clock)?,
        host: host_name(),
        icache_bytes: config.icache.memory.as_u64(),
        delta: delta_settings(config),
        idle_close: config.clones.idle_close,
        power_off_grace: config.clones.power_off_grace,
        slots_per_base: config.clones.slots_per_base,
    })
}

/// What the gateway shows of itself at `/metrics`, besides HTTP.
fn show_gateway(metrics: &Metrics, gateway: &Arc<Gateway>) {
    let counter = |name, help, read: fn(&crate::icache::ICacheStats) -> u64, kind| {
        let icache = Arc::clone(gateway.icache());
        metrics.add(name, help, kind, move || Sample::plain(read(&icache.stats())));
    };
    counter("clonegate_icache_hits", "Chunk reads answered from memory", |s| s.hits, Kind::Counter);
    counter("clonegate_icache_misses", "Chunk reads that had to be fetched", |s| s.misses, Kind::Counter);
    counter("clonegate_icache_joins", "Chunk reads that waited for another's fetch", |s| s.joins, Kind::Counter);
    counter("clonegate_icache_failures", "Fetches that failed", |s| s.failures, Kind::Counter);
    counter("clonegate_icache_evictions", "Lines dropped to make room", |s| s.evictions, Kind::Counter);
    counter("clonegate_icache_store_bytes", "Bytes fetched from stores", |s| s.store_bytes, Kind::Counter);
    counter("clonegate_icache_store_requests", "GETs sent to stores", |s| s.store_requests, Kind::Counter);
    counter("clonegate_icache_spared_bytes", "Bytes handed out without a fetch", |s| s.spared_bytes, Kind::Counter);
    counter("clonegate_icache_resident_bytes", "Bytes in memory", |s| s.resident_bytes, Kind::Gauge);
    counter("clonegate_icache_capacity_bytes", "Most bytes in memory", |s| s.capacity_bytes, Kind::Gauge);
    counter("clonegate_icache_lines", "Lines in memory", |s| s.entries, Kind::Gauge);
    let states = Arc::clone(gateway);
    let help = "States of names that were taken away because newer ones are there";
    metrics.add("clonegate_catalog_states_pruned", help, Kind::Counter, move || Sample::plain(states.states_pruned()));
    show_stores(metrics, gateway);
}

/// What the NBD server counts.
fn show_nbd(metrics: &Metrics, stats: &Arc<NbdStats>) {
    let each = |name, help, kind, read: fn(&NbdStats) -> &AtomicU64| {
        let stats = Arc::clone(stats);
        metrics.add(name, help, kind, move || Sample::plain(read(&stats).load(Ordering::Relaxed)));
    };
    each("clonegate_nbd_connections_opened", "Connections accepted", Kind::Counter, |s| &s.connections);
    each("clonegate_nbd_connections", "Connections open", Kind::Gauge, |s| &s.connections_open);
    each("clonegate_nbd_connections_lost", "Connections that ended without a good-bye", Kind::Counter, |s| {
        &s.connections_lost
    });
    each("clonegate_nbd_requests", "Requests read", Kind::Counter, |s| &s.requests);
    each("clonegate_nbd_requests_inline", "Requests answered from memory at once", Kind::Counter, |s| {
        &s.requests_inline
    });
    each("clonegate_nbd_errors", "Requests answered with an error", Kind::Counter, |s| &s.errors);
    each("clonegate_nbd_read_bytes", "Payload bytes of reads", Kind::Counter, |s| &s.read_bytes);
    each("clonegate_nbd_written_bytes", "Payload bytes of writes", Kind::Counter, |s| &s.written_bytes);
}

/// What was asked of each store.
fn show_stores(metrics: &Metrics, gateway: &Arc<Gateway>) {
    let each = |name, help, read: fn(Count) -> u64| {
        let gateway = Arc::clone(gateway);
        metrics.add(name, help, Kind::Counter, move || {
            let mut samples = Vec::new();
            for (store_name, store) in gateway.stores() {
                for operation in Operation::ALL {
                    let labels = vec![("store", store_name.clone()), ("operation", operation.name().to_owned())];
                    samples.push(Sample { labels, value: read(store.counts().of(operation)) });
                }
            }
            samples
        });
    };
    each("clonegate_store_requests", "Requests sent to stores, retries counted", |count| count.requests);
    each("clonegate_store_failures", "Requests that stores failed", |count| count.failures);
    each("clonegate_store_bytes", "Bytes of objects sent to and received from stores", |count| count.bytes);
    each("clonegate_store_wait_microseconds", "Time until answers began, summed", |count| {
        u64::try_from(count.time.as_micros()).unwrap_or(u64::MAX)
    });
}

/// What it shows of its policies: one value for each plugin in each chain, over its places there (which may be for different pools).
fn show_policies(metrics: &Metrics, policies: &Policies) {
    let links = |name, help, read: fn(&LinkStatus) -> u64, kind| {
        let host = Arc::clone(policies.host());
        metrics.add(name, help, kind, move || {
            let mut sums = BTreeMap::<(String, String), u64>::new();
            for plugin in host.list() {
                for link in &plugin.links {
                    *sums.entry((plugin.name.clone(), link.slot.to_string())).or_default() += read(link);
                }
            }
            let sample = |((plugin, slot), value)| Sample { labels: vec![("plugin", plugin), ("slot", slot)], value };
            sums.into_iter().map(sample).collect()
        });
    };
    links("clonegate_policy_calls", "Questions that a plugin was asked", |l| l.asked, Kind::Counter);
    links("clonegate_policy_failures", "Calls that failed or were ended", |l| l.failed, Kind::Counter);
    links(
        "clonegate_policy_skipped",
        "Questions a plugin was not asked: missing, or its breaker open",
        |l| l.skipped,
        Kind::Counter,
    );
    links("clonegate_policy_shadow_differences", "Answers in shadow that differed", |l| l.differed, Kind::Counter);
    links("clonegate_policy_microseconds", "Time in calls", |l| l.us, Kind::Counter);
    links("clonegate_policy_fuel", "Fuel used by calls", |l| l.fuel, Kind::Counter);
    links(
        "clonegate_policy_breaker_open",
        "Places where a plugin is not asked for a while because it kept failing",
        |l| u64::from(l.breaker_open_until_ms.is_some()),
        Kind::Gauge,
    );
    let stats = |name, help, read: fn(&clonegate_policy_host::HostStats) -> u64| {
        let host = Arc::clone(policies.host());
        metrics.add(name, help, Kind::Counter, move || Sample::plain(read(&host.stats())));
    };
    stats("clonegate_policy_decisions", "Decisions", |s| s.decisions.iter().sum());
    stats(
        "clonegate_policy_fallbacks",
        "Decisions of the built-in rule because plugins failed or were not asked",
        |s| s.fallbacks,
    );
    stats("clonegate_policy_records_lost", "Decisions that were not recorded", |s| s.records_lost);
    let host = Arc::clone(policies.host());
    let help = "Places in chains where nobody is asked: the plugin is not there, or its settings are refused";
    metrics.add("clonegate_policy_empty_places", help, Kind::Gauge, move || Sample::plain(host.stats().empty_places));
    stats("clonegate_policy_ticks", "Ticks of the thread that ends loops", |s| s.ticks);
}
