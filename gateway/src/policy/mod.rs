//! Asks the policy plugins for the control layer: the [`Advisor`] made of `clonegate-policy-host`.
//!
//! What a decision is a function of comes from here: its id, the time and the seed, all from the clock, so that a simulation
//! replays from a seed.

mod embedded;

use std::sync::{Arc, Weak};
use std::time::Duration;

use clonegate_core::Result;
use clonegate_core::advice::{
    Answer, Inventory, PlacementRequest, PlacementVerdict, Question, ResetRequest, ResetVerdict, RolloverRequest,
    RolloverVerdict, builtin,
};
use clonegate_core::ids::DecisionKind;
use clonegate_policy_host::{HostSettings, Moment, PolicyHost, Record};
use futures::future::BoxFuture;

pub use self::embedded::EMBEDDED;
use crate::clock::Clock;
use crate::lifecycle::advisor::{Advice, Advisor};

/// How often the directory of plugins is looked at.
const WATCH_EVERY: Duration = Duration::from_secs(2);

/// The plugins of a gateway as its advisor.
#[derive(Debug, Clone)]
pub struct Policies {
    host: Arc<PolicyHost>,
    clock: Clock,
}

impl Policies {
    /// Starts the sandbox and loads what the chains name; the plugins of this program are added to the settings. A plugin that
    /// cannot be loaded leaves its place to the next, and at last to the built-in rule.
    ///
    /// # Errors
    /// `policy-engine` (internal), `decisions-directory` (unavailable).
    pub fn start(settings: HostSettings, clock: Clock) -> Result<Self> {
        let watched = settings.plugins.is_some();
        let policies = Self::look(settings, clock)?;
        if watched {
            watch(Arc::downgrade(&policies.host))?;
        }
        Ok(policies)
    }

    /// The same for a look at what is there, beside a gateway that may run: the directory is not watched, so nothing is installed.
    ///
    /// # Errors
    /// `policy-engine` (internal), `decisions-directory` (unavailable).
    pub fn look(mut settings: HostSettings, clock: Clock) -> Result<Self> {
        settings.embedded.extend(EMBEDDED);
        Ok(Self { host: PolicyHost::start(settings)?, clock })
    }

    /// The plugins, for control and metrics.
    pub fn host(&self) -> &Arc<PolicyHost> {
        &self.host
    }

    async fn ask(&self, question: Question) -> Arc<Record> {
        let moment = Moment {
            decision: self.clock.id::<DecisionKind>().to_string(),
            now_ms: self.clock.now_ms(),
            seed: self.clock.random_u64(),
        };
        self.host.decide(moment, question).await
    }
}

/// Looks at the directory of plugins until the host is gone. On a thread of its own: installing compiles and replays.
fn watch(host: Weak<PolicyHost>) -> Result<()> {
    let looking = move || {
        while let Some(host) = host.upgrade() {
            host.scan();
            drop(host);
            std::thread::sleep(WATCH_EVERY);
        }
    };
    std::thread::Builder::new().name("policy-watch".into()).spawn(looking).map(drop).map_err(|e| {
        clonegate_core::Error::internal("policy-engine", "the thread that watches plugins does not start").because(e)
    })
}

fn advice<V>(record: &Record, verdict: V) -> Advice<V> {
    Advice { verdict, by: record.by.clone(), decision: record.decision.clone() }
}

impl Advisor for Policies {
    fn place<'a>(
        &'a self,
        request: &'a PlacementRequest,
        inventory: &'a Inventory,
    ) -> BoxFuture<'a, Advice<PlacementVerdict>> {
        Box::pin(async move {
            let record = self.ask(Question::Placement { request: request.clone(), inventory: inventory.clone() }).await;
            let verdict = match &record.answer {
                Answer::Placement(verdict) => verdict.clone(),
                _ => builtin::place(request, inventory),
            };
            advice(&record, verdict)
        })
    }

    fn roll_over<'a>(
        &'a self,
        request: &'a RolloverRequest,
        inventory: &'a Inventory,
    ) -> BoxFuture<'a, Advice<RolloverVerdict>> {
        Box::pin(async move {
            let record = self.ask(Question::Rollover { request: request.clone(), inventory: inventory.clone() }).await;
            let verdict = match &record.answer {
                Answer::Rollover(verdict) => verdict.clone(),
                _ => builtin::roll_over(request),
            };
            advice(&record, verdict)
        })
    }

    fn reset<'a>(&'a self, request: &'a ResetRequest) -> BoxFuture<'a, Advice<ResetVerdict>> {
        Box::pin(async move {
            let record = self.ask(Question::Reset { request: request.clone() }).await;
            let verdict = match &record.answer {
                Answer::Reset(verdict) => verdict.clone(),
                _ => builtin::reset(request),
            };
            advice(&record, verdict)
        })
    }
}
