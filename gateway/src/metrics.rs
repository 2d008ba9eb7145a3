//! Counters and gauges: names, units and labels in one place.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use clonegate_core::{Error, Result};
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

/// Everything that `/metrics` shows.
///
/// Hot paths count in structures of their own; what is registered here reads them when it is asked.
pub struct Metrics {
    registry: Mutex<Registry>,
    http: Arc<Mutex<Vec<Arc<HttpCounters>>>>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// Whether a value only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows; `_total` is added to its name.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// One value with its labels.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Names and values of its labels.
    pub labels: Vec<(&'static str, String)>,
    /// The value.
    pub value: u64,
}

impl Sample {
    /// A value without labels.
    pub fn plain(value: u64) -> Vec<Self> {
        vec![Self { labels: Vec::new(), value }]
    }
}

impl Metrics {
    /// Metrics that show HTTP, and what others add.
    pub fn new() -> Arc<Self> {
        let metrics = Self { registry: Mutex::new(Registry::default()), http: Arc::default() };
        metrics.add_http();
        Arc::new(metrics)
    }

    /// Adds a metric that is read when it is asked for. `name` begins with `clonegate_` and ends with its unit.
    pub fn add(
        &self,
        name: &'static str,
        help: &'static str,
        kind: Kind,
        read: impl Fn() -> Vec<Sample> + Send + Sync + 'static,
    ) {
        let source = Source { name, help, kind, read: Box::new(read) };
        self.registry.lock().register_collector(Box::new(source));
    }

    /// Counters for one more HTTP worker.
    pub(crate) fn http_worker(&self) -> Arc<HttpCounters> {
        let counters = Arc::new(HttpCounters::default());
        self.http.lock().push(Arc::clone(&counters));
        counters
    }

    /// The text that Prometheus reads (OpenMetrics 1.0).
    ///
    /// # Errors
    /// `Internal` when a source fails to write itself.
    pub fn render(&self) -> Result<String> {
        let mut out = String::new();
        text::encode(&mut out, &self.registry.lock())
            .map_err(|error| Error::internal("metrics", "the metrics cannot be written").because(error))?;
        Ok(out)
    }

    fn add_http(&self) {
        let sum = |read: fn(&HttpCounters) -> u64| {
            let workers = Arc::clone(&self.http);
            move || Sample::plain(workers.lock().iter().map(|worker| read(worker)).sum())
        };
        let workers = Arc::clone(&self.http);
        self.add("clonegate_http_requests", "Requests answered", Kind::Counter, move || requests(&workers.lock()));
        let workers = Arc::clone(&self.http);
        self.add("clonegate_http_sent_bytes", "Bytes of response bodies", Kind::Counter, move || {
            let workers = workers.lock();
            let sent = |class: RouteClass| workers.iter().map(|w| w.sent[class as usize].load(Relaxed)).sum();
            RouteClass::ALL
                .into_iter()
                .map(|class| Sample { labels: vec![("route", class.label().to_owned())], value: sent(class) })
                .filter(|sample| sample.value > 0)
                .collect()
        });
        self.add(
            "clonegate_http_written_bytes",
            "Bytes of disks written by PUT",
            Kind::Counter,
            sum(|w| w.written.load(Relaxed)),
        );
        self.add(
            "clonegate_http_connections_opened",
            "Connections accepted",
            Kind::Counter,
            sum(|w| w.opened.load(Relaxed)),
        );
        self.add(
            "clonegate_http_connections",
            "Connections open",
            Kind::Gauge,
            sum(|w| w.opened.load(Relaxed).saturating_sub(w.closed.load(Relaxed))),
        );
        self.add(
            "clonegate_http_connections_timed_out",
            "Connections cut off because their client was too slow",
            Kind::Counter,
            sum(|w| w.timed_out.load(Relaxed)),
        );
        self.add(
            "clonegate_http_connections_refused",
            "Connections turned away because all that may be open were being served",
            Kind::Counter,
            sum(|w| w.refused.load(Relaxed)),
        );
        self.add(
            "clonegate_http_bodies_aborted",
            "Answers broken off because the volume changed or could not be read",
            Kind::Counter,
            sum(|w| w.aborted.load(Relaxed)),
        );
    }
}

fn requests(workers: &[Arc<HttpCounters>]) -> Vec<Sample> {
    let mut samples = Vec::new();
    for class in RouteClass::ALL {
        for (slot, status) in STATUSES.into_iter().enumerate() {
            let value = workers.iter().map(|worker| worker.requests[class as usize][slot].load(Relaxed)).sum();
            if value > 0 {
                let status = if status == 0 { "other".to_owned() } else { status.to_string() };
                samples.push(Sample { labels: vec![("route", class.label().to_owned()), ("status", status)], value });
            }
        }
    }
    samples
}

struct Source {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    read: Box<dyn Fn() -> Vec<Sample> + Send + Sync>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Collector for Source {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
        };
        let mut metric = encoder.encode_descriptor(self.name, self.help, None, kind)?;
        for sample in (self.read)() {
            if sample.labels.is_empty() {
                // A family would put empty braces behind the name.
                write_value(&mut metric, self.kind, sample.value)?;
            } else {
                write_value(&mut metric.encode_family(&sample.labels)?, self.kind, sample.value)?;
            }
        }
        Ok(())
    }
}

fn write_value(metric: &mut MetricEncoder<'_>, kind: Kind, value: u64) -> fmt::Result {
    match kind {
        Kind::Counter => metric.encode_counter::<NoLabelSet, u64, u64>(&value, None),
        Kind::Gauge => metric.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX)),
    }
}

/// Groups of routes in metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum RouteClass {
    Clone,
    Identity,
    Disk,
    Base,
    Template,
    Control,
}

impl RouteClass {
    const ALL: [Self; 6] = [Self::Clone, Self::Identity, Self::Disk, Self::Base, Self::Template, Self::Control];

    const fn label(self) -> &'static str {
        match self {
            Self::Clone => "clone",
            Self::Identity => "identity",
            Self::Disk => "disk",
            Self::Base => "base",
            Self::Template => "template",
            Self::Control => "control",
        }
    }
}

/// Statuses that are counted one by one; 0 stands for the others.
const STATUSES: [u16; 24] = [
    206, 200, 204, 0, 201, 202, 304, 400, 401, 403, 404, 405, 408, 409, 412, 413, 415, 416, 429, 500, 501, 503, 507,
    431,
];

/// What one HTTP worker has counted. A cache line of its own, as every request writes here.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct HttpCounters {
    requests: [[AtomicU64; STATUSES.len()]; RouteClass::ALL.len()],
    sent: [AtomicU64; RouteClass::ALL.len()],
    written: AtomicU64,
    opened: AtomicU64,
    closed: AtomicU64,
    timed_out: AtomicU64,
    refused: AtomicU64,
    aborted: AtomicU64,
}

impl HttpCounters {
    pub(crate) fn answered(&self, class: RouteClass, status: u16) {
        let slot = STATUSES.iter().position(|known| *known == status).unwrap_or(3);
        self.requests[class as usize][slot].fetch_add(1, Relaxed);
    }

    pub(crate) fn sent(&self, class: RouteClass, bytes: u64) {
        self.sent[class as usize].fetch_add(bytes, Relaxed);
    }

    pub(crate) fn written(&self, bytes: u64) {
        self.written.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn opened(&self) {
        self.opened.fetch_add(1, Relaxed);
    }

    pub(crate) fn closed(&self) {
        self.closed.fetch_add(1, Relaxed);
    }

    pub(crate) fn timed_out(&self) {
        self.timed_out.fetch_add(1, Relaxed);
    }

    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    pub(crate) fn aborted(&self) {
        self.aborted.fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_summed_and_labelled() {
        let metrics = Metrics::new();
        let (one, two) = (metrics.http_worker(), metrics.http_worker());
        one.answered(RouteClass::Clone, 206);
        two.answered(RouteClass::Clone, 206);
        two.answered(RouteClass::Control, 418);
        one.sent(RouteClass::Clone, 4096);
        one.opened();
        metrics.add("clonegate_test_bytes", "A test", Kind::Gauge, || Sample::plain(7));
        let text = metrics.render().unwrap();
        for line in [
            "clonegate_http_requests_total{route=\"clone\",status=\"206\"} 2",
            "clonegate_http_requests_total{route=\"control\",status=\"other\"} 1",
            "clonegate_http_sent_bytes_total{route=\"clone\"} 4096",
            "clonegate_http_connections 1",
            "clonegate_test_bytes 7",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is not in\n{text}");
        }
    }
}
