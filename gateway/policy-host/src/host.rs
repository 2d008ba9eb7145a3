//! The plugins of a gateway and their chains: asks, records, and exchanges plugins while it runs.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use clonegate_core::advice::{Context, Question, Slot};
use clonegate_core::{Error, Result};
use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;

use crate::binding::{Chains, Mode};
use crate::chain::{self, Link};
use crate::compile::Compiler;
use crate::engine::Engine;
use crate::install::Entry;
use crate::journal::{Journal, Wanted};
use crate::limits::{Allowance, CallLimits, Limits};
use crate::plugin::{Plugin, PluginInfo, WIT};
use crate::record::{BUILT_IN, RECORD_VERSION, Record};
use crate::workers::{Undone, Workers};

/// A plugin that is part of the program.
#[derive(Debug, Clone, Copy)]
pub struct Embedded {
    /// Its name in chains.
    pub name: &'static str,
    /// Its component.
    pub component: &'static [u8],
}

/// How a host is set up.
#[derive(Debug, Clone)]
pub struct HostSettings {
    /// Who is asked what.
    pub chains: Chains,
    /// The sandbox.
    pub limits: Limits,
    /// Threads that calls run on.
    pub threads: usize,
    /// Plugins may reset persistent clones.
    pub allow_persistent_reset: bool,
    /// Where decisions are recorded, and most bytes there; none: in memory only.
    pub records: Option<(PathBuf, u64)>,
    /// Where installed plugins are kept, and watched for new ones; none: in memory only.
    pub plugins: Option<PathBuf>,
    /// Who proves that an installed component compiles within the limits.
    pub compiler: Compiler,
    /// Plugins that need no installing.
    pub embedded: Vec<Embedded>,
}

impl Default for HostSettings {
    fn default() -> Self {
        Self {
            chains: Chains::default(),
            limits: Limits::default(),
            threads: 2,
            allow_persistent_reset: false,
            records: None,
            plugins: None,
            compiler: Compiler::Here,
            embedded: Vec::new(),
        }
    }
}

/// Whoever has it is the only one who changes what is installed.
pub(crate) type Changing<'a> = MutexGuard<'a, ()>;

/// What stands in for clock and randomness in one decision.
#[derive(Debug, Clone)]
pub struct Moment {
    /// The id of the decision.
    pub decision: String,
    /// Now, milliseconds since 1970 UTC.
    pub now_ms: u64,
    /// For ties.
    pub seed: u64,
}

/// All plugins of a gateway.
#[derive(Debug)]
pub struct PolicyHost {
    pub(crate) engine: Engine,
    pub(crate) settings: HostSettings,
    pub(crate) active: ArcSwap<Active>,
    /// Held by who installs, brings back, removes or binds, for as long as compiling, replaying and writing files take.
    pub(crate) changing: Mutex<()>,
    /// What is installed under which name; locked for a look or an exchange only, so that whoever lists waits for nobody's work. Only who
    /// holds `changing` exchanges plugins.
    pub(crate) entries: Mutex<BTreeMap<String, Entry>>,
    /// What is loaded, by digest, for as long as somebody holds it.
    pub(crate) loaded: Mutex<HashMap<blake3::Hash, Weak<Plugin>>>,
    workers: Workers,
    pub(crate) journal: Journal,
    sequence: [AtomicU64; 3],
    fallbacks: AtomicU64,
}

/// The chains with their plugins, exchanged as a whole.
#[derive(Debug, Default)]
pub(crate) struct Active {
    pub(crate) chains: Chains,
    pub(crate) links: [Vec<Arc<Link>>; 3],
}

impl Active {
    pub(crate) fn of(&self, slot: Slot) -> &[Arc<Link>] {
        match slot {
            Slot::Placement => &self.links[0],
            Slot::Rollover => &self.links[1],
            Slot::Reset => &self.links[2],
        }
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (Slot, &Arc<Link>)> {
        Slot::ALL.into_iter().flat_map(|slot| self.of(slot).iter().map(move |link| (slot, link)))
    }
}

/// A plugin of a gateway, for people and programs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PluginStatus {
    /// The name that it is installed under.
    pub name: String,
    /// `active`, `available` (in no chain), `missing` (in a chain, and not loaded), or `refused` (in chains, and nowhere
    /// asked: each place says why).
    pub state: &'static str,
    /// What it is; none while it is not loaded.
    pub info: Option<PluginInfo>,
    /// True for one that is part of the program.
    pub embedded: bool,
    /// The version that a rollback would bring back.
    pub previous: Option<String>,
    /// Why the last install failed, and at which step; the one before stays active.
    pub problem: Option<String>,
    /// Its places in chains.
    pub links: Vec<LinkStatus>,
}

/// A place of a plugin in a chain.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LinkStatus {
    /// The chain.
    pub slot: Slot,
    /// Whether its answers count.
    pub mode: Mode,
    /// Pools that it is asked for; empty: all.
    pub pools: Vec<String>,
    /// Why it is not asked here, though it is loaded: wrong settings, or it does not decide this.
    pub problem: Option<String>,
    /// Until when it is not asked because it kept failing, milliseconds since 1970 UTC.
    pub breaker_open_until_ms: Option<u64>,
    /// Calls.
    pub asked: u64,
    /// Calls with an answer (no opinion counts).
    pub answered: u64,
    /// Calls that failed or trapped.
    pub failed: u64,
    /// Questions that it was not asked: not loaded, or breaker open.
    pub skipped: u64,
    /// Shadow only: answers that differed.
    pub differed: u64,
    /// Time in calls, microseconds.
    pub us: u64,
    /// Fuel of all calls.
    pub fuel: u64,
    /// What one call may take here.
    pub limits: LinkLimits,
}

/// What one call may take at a place in a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LinkLimits {
    /// Fuel, whatever is asked.
    pub fuel: u64,
    /// Fuel for each record of the question on top of it.
    pub fuel_per_record: u64,
    /// Linear memory, bytes.
    pub memory_bytes: usize,
    /// Time, milliseconds.
    pub time_ms: u64,
}

impl LinkLimits {
    /// What a place without limits of its own gives, or (`own`) another.
    pub fn of(limits: &Limits, own: &CallLimits) -> Self {
        let Allowance { fuel, memory_bytes, wall } = Allowance::of(limits, own, 0);
        let time_ms = u64::try_from(wall.as_millis()).unwrap_or(u64::MAX);
        Self { fuel, fuel_per_record: limits.fuel_per_record, memory_bytes, time_ms }
    }
}

/// Figures of a host, for metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct HostStats {
    /// Decisions, by slot in the order of [`Slot::ALL`].
    pub decisions: [u64; 3],
    /// Decisions that the built-in rule made because plugins failed, were not asked, or were too busy.
    pub fallbacks: u64,
    /// Places in chains where nobody is asked: the plugin is not there, or its settings are refused.
    pub empty_places: u64,
    /// Decisions that were not recorded.
    pub records_lost: u64,
    /// Ticks of the thread that ends loops; stands still only when the sandbox is broken.
    pub ticks: u64,
}

impl PolicyHost {
    /// Starts the sandbox and loads what the chains name. A plugin that cannot be loaded leaves its place empty and says so in
    /// its status: a gateway starts in any case.
    ///
    /// # Errors
    /// `policy-engine` (internal), `decisions-directory` (unavailable).
    pub fn start(settings: HostSettings) -> Result<Arc<Self>> {
        let engine = Engine::new(settings.limits.clone())?;
        let limits = engine.limits();
        let workers = Workers::start(settings.threads.max(1), limits.queue, limits.queue_wait)
            .map_err(|e| Error::internal("policy-engine", "the threads of policies do not start").because(e))?;
        let journal = match &settings.records {
            Some((directory, bytes_max)) => Journal::open(directory, *bytes_max)?,
            None => Journal::in_memory(),
        };
        let chains = settings.chains.clone();
        let host = Self {
            engine,
            settings,
            active: ArcSwap::default(),
            changing: Mutex::default(),
            entries: Mutex::default(),
            loaded: Mutex::default(),
            workers,
            journal,
            sequence: Default::default(),
            fallbacks: AtomicU64::new(0),
        };
        host.load_installed();
        host.bind(chains);
        Ok(Arc::new(host))
    }

    /// Asks the plugins of the question's slot, and at last the built-in rule. Always answers.
    pub async fn decide(self: &Arc<Self>, moment: Moment, question: Question) -> Arc<Record> {
        let slot = question.slot();
        let counter = &self.sequence[Slot::ALL.iter().position(|s| *s == slot).unwrap_or_default()];
        let sequence = counter.fetch_add(1, Ordering::Relaxed);
        let context = Context { decision: moment.decision, now_ms: moment.now_ms, seed: moment.seed, sequence };
        let active = self.active.load_full();
        let allow = self.settings.allow_persistent_reset;
        let kept = (context.clone(), question.clone());
        let done = self.workers.run(move || chain::decide(active.of(slot), context, question, allow)).await;
        let record = Arc::new(done.unwrap_or_else(|undone| undecided(kept.0, kept.1, undone)));
        if record.by == BUILT_IN && record.note.is_some() {
            self.fallbacks.fetch_add(1, Ordering::Relaxed);
        }
        self.journal.add(&record);
        record
    }

    /// The chains.
    pub fn chains(&self) -> Chains {
        self.active.load().chains.clone()
    }

    /// Exchanges the chains; plugins that they name are loaded.
    pub fn bind(&self, chains: Chains) {
        let changing = self.changing.lock();
        for slot in Slot::ALL {
            for binding in chains.of(slot) {
                self.ensure(&changing, &binding.plugin);
            }
        }
        self.relink(&changing, chains);
    }

    /// Every plugin that is installed, embedded or named by a chain. Waits for nobody who installs one.
    pub fn list(&self) -> Vec<PluginStatus> {
        let active = self.active.load();
        let entries = self.entries.lock();
        let mut names: Vec<&str> = entries.keys().map(String::as_str).collect();
        names.extend(self.settings.embedded.iter().map(|e| e.name));
        names.sort_unstable();
        names.dedup();
        names.into_iter().map(|name| self.status(name, entries.get(name), &active)).collect()
    }

    /// One plugin. One that is part of the program and in no chain is loaded to see what it is, which takes a moment.
    pub fn show(&self, name: &str) -> Option<PluginStatus> {
        let mut found = self.list().into_iter().find(|p| p.name == name)?;
        if found.info.is_none()
            && let Some(embedded) = self.settings.embedded.iter().find(|e| e.name == name)
            && found.links.is_empty()
        {
            found.info = self.load(embedded.component, &Compiler::Here).ok().map(|plugin| plugin.info().clone());
        }
        Some(found)
    }

    fn status(&self, name: &str, entry: Option<&Entry>, active: &Active) -> PluginStatus {
        let plugin = entry.and_then(|e| e.plugin.as_ref());
        let links: Vec<_> = active
            .all()
            .filter(|(_, link)| link.binding.plugin == name)
            .map(|(slot, link)| LinkStatus {
                slot,
                mode: link.binding.mode,
                pools: link.binding.pools.clone(),
                problem: link.problem.clone(),
                breaker_open_until_ms: link.breaker.lock().open_until_ms(),
                asked: link.counts.asked.load(Ordering::Relaxed),
                answered: link.counts.answered.load(Ordering::Relaxed),
                failed: link.counts.failed.load(Ordering::Relaxed),
                skipped: link.counts.skipped.load(Ordering::Relaxed),
                differed: link.counts.differed.load(Ordering::Relaxed),
                us: link.counts.us.load(Ordering::Relaxed),
                fuel: link.counts.fuel.load(Ordering::Relaxed),
                limits: LinkLimits::of(self.engine.limits(), &link.binding.limits),
            })
            .collect();
        PluginStatus {
            name: name.to_owned(),
            state: match (plugin, links.is_empty()) {
                (Some(_), false) if links.iter().all(|link| link.problem.is_some()) => "refused",
                (Some(_), false) => "active",
                (None, false) => "missing",
                (_, true) => "available",
            },
            info: plugin.map(|p| p.info().clone()),
            embedded: entry.map_or(self.is_embedded(name), |e| e.embedded),
            previous: entry.and_then(|e| e.previous.as_ref()).map(|p| p.version.clone()),
            problem: entry.and_then(|e| e.problem.clone()),
            links,
        }
    }

    /// Places in chains where nobody is asked, each with the reason: for people.
    pub fn empty_places(&self) -> Vec<(Slot, String, String)> {
        let active = self.active.load();
        let empty = active.all().filter(|(_, link)| link.is_empty());
        let why =
            |link: &Link| link.problem.clone().unwrap_or_else(|| "it is not installed, or cannot be loaded".into());
        empty.map(|(slot, link)| (slot, link.binding.plugin.clone(), why(link))).collect()
    }

    /// Figures.
    pub fn stats(&self) -> HostStats {
        HostStats {
            decisions: [0, 1, 2].map(|slot| self.sequence[slot].load(Ordering::Relaxed)),
            fallbacks: self.fallbacks.load(Ordering::Relaxed),
            empty_places: self.active.load().all().map(|(_, link)| u64::from(link.is_empty())).sum(),
            records_lost: self.journal.lost(),
            ticks: self.engine.ticks(),
        }
    }

    /// The newest `limit` decisions since a time, oldest of them first, as JSON lines of at most so many bytes. Reads files.
    ///
    /// # Errors
    /// `decisions-directory` (unavailable).
    pub fn decisions(&self, slot: Option<Slot>, since_ms: u64, limit: usize, bytes_max: usize) -> Result<Vec<Vec<u8>>> {
        self.newest(limit, bytes_max, &|r| match r.context.now_ms >= since_ms {
            false => Wanted::TooOld,
            true if slot.is_none_or(|s| r.question.slot() == s) => Wanted::Yes,
            true => Wanted::No,
        })
    }

    /// One decision by its id, as a JSON line. Reads files.
    ///
    /// # Errors
    /// `decisions-directory` (unavailable).
    pub fn decision(&self, id: &str) -> Result<Option<Vec<u8>>> {
        let wanted = |r: &Record| if r.decision == id { Wanted::Yes } else { Wanted::No };
        Ok(self.newest(1, usize::MAX, &wanted)?.pop())
    }

    fn newest(&self, limit: usize, bytes_max: usize, wanted: &dyn Fn(&Record) -> Wanted) -> Result<Vec<Vec<u8>>> {
        if let Some((directory, _)) = &self.settings.records {
            self.journal.flush();
            return crate::journal::newest(directory, limit, bytes_max, wanted);
        }
        let mut records: Vec<_> = Slot::ALL.into_iter().flat_map(|slot| self.journal.recent(slot)).collect();
        records.sort_by_key(|r| r.context.now_ms);
        records.retain(|r| wanted(r) == Wanted::Yes);
        let newest = records.split_off(records.len().saturating_sub(limit));
        // Records are plain data; writing them to memory cannot fail.
        Ok(newest.iter().filter_map(|record| serde_json::to_vec(&**record).ok()).collect())
    }

    /// The log of decisions.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// A loaded plugin by name.
    pub fn plugin(&self, name: &str) -> Option<Arc<Plugin>> {
        self.entries.lock().get(name).and_then(|e| e.plugin.clone())
    }

    pub(crate) fn is_embedded(&self, name: &str) -> bool {
        self.settings.embedded.iter().any(|e| e.name == name)
    }

    /// Makes the links of new chains, keeping those that have not changed, with their breakers and counts.
    /// New ones check their settings, which asks the plugin.
    pub(crate) fn relink(&self, _: &Changing<'_>, chains: Chains) {
        let old = self.active.load_full();
        let installed = |(name, entry): (&String, &Entry)| Some((name.clone(), Arc::clone(entry.plugin.as_ref()?)));
        let plugins: BTreeMap<String, Arc<Plugin>> = self.entries.lock().iter().filter_map(installed).collect();
        let links = Slot::ALL.map(|slot| {
            let links = chains.of(slot).iter().map(|binding| {
                let plugin = plugins.get(&binding.plugin);
                let unchanged = old.of(slot).iter().find(|link| {
                    link.binding == *binding
                        && match (&link.plugin, plugin) {
                            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                            (None, None) => true,
                            _ => false,
                        }
                });
                unchanged.cloned().unwrap_or_else(|| Arc::new(Link::new(slot, binding.clone(), plugin.cloned())))
            });
            links.collect()
        });
        self.active.store(Arc::new(Active { chains, links }));
    }
}

/// What stands when the chain could not be asked at all.
fn undecided(context: Context, question: Question, undone: Undone) -> Record {
    let note = match undone {
        Undone::Busy => "all threads of policies are busy",
        Undone::Lost => "the decision was lost to a bug in the gateway",
    };
    let answer = question.builtin();
    Record {
        v: RECORD_VERSION,
        decision: context.decision.clone(),
        wit: WIT.to_owned(),
        context,
        question,
        chain: Vec::new(),
        answer,
        by: BUILT_IN.to_owned(),
        note: Some(note.to_owned()),
        shadow: Vec::new(),
        us: 0,
    }
}
