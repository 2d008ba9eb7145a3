//! What happens to a clone when its machine is switched on or off: updates that wait, resets that a policy wants, holds.
//!
//! Events come from operators and hooks (`power on|off|logoff`) and from NBD: a clean good-bye of the last writer that nobody follows within
//! the grace time. A lost connection is no event: a restart, a migration or a network fault never discards a byte.

use std::sync::Arc;
use std::time::Duration;

use clonegate_core::advice::{
    BaseState, Exit, Lifetime, Release, ResetEvent, ResetOnto, ResetRequest, ResetTiming, ResetVerdict,
    Volume as Subject, check,
};
use clonegate_core::format::catalog::{CloneEntry, TemplateEntry};
use clonegate_core::ids::CloneId;
use clonegate_core::{Error, Result};

use super::audit::{Act, Why};
use super::context;
use super::gateway::Gateway;
use super::open::{Of, Open};
use super::pending::goes_on_waiting;
use super::placement::{advised, image};
use super::update::Stuck;
use super::views::{PowerEvent, PowerOutcome, ResetRulesView, Touched};
use crate::catalog::Named;
use crate::device::Device as _;
use crate::exports::CloneRef;

/// What a reset policy said, after it was checked.
struct Judged {
    event: ResetEvent,
    attached: bool,
    verdict: ResetVerdict,
    /// Why it is not what the policy answered, when it is not.
    changed: Option<&'static str>,
    /// The policy.
    by: String,
    decision: String,
}

impl Gateway {
    pub(super) async fn do_power_clone(self: Arc<Self>, clone: String, event: PowerEvent) -> Result<PowerOutcome> {
        let clone = self.find_clone(&clone.parse()?).await?;
        let outcome = self.act_on_power(&clone, event).await;
        let (reason, policy) = match &outcome {
            Ok(outcome) => (format!("{event:?}: {}, {}", outcome.action, outcome.reason), outcome.by.clone()),
            Err(_) => (format!("{event:?}"), String::new()),
        };
        let act = Act { action: "clone power", object: clone.name.as_str(), reason: &reason, policy: &policy };
        self.note(act, &outcome.as_ref().map(drop).map_err(Clone::clone)).await;
        outcome
    }

    async fn act_on_power(self: &Arc<Self>, clone: &Named<CloneEntry>, event: PowerEvent) -> Result<PowerOutcome> {
        match event {
            // Whoever switches it on knows that its machine begins anew, however the last connection ended.
            PowerEvent::On => {
                if let Some(volume) =
                    self.open.of(Of::Clone(clone.state.record.id)).and_then(|open| open.volume.clone())
                {
                    volume.begin_anew();
                }
                self.note_off_unless_attached(clone).await?;
                self.do_what_waits(clone).await
            }
            PowerEvent::Off => self.powered_off(clone, ResetEvent::PowerOff).await,
            PowerEvent::Logoff => self.ask_reset(clone, ResetEvent::LogOff).await,
        }
    }

    async fn note_off_unless_attached(&self, clone: &Named<CloneEntry>) -> Result<()> {
        if self.open.attached(clone.state.record.id).is_empty() { self.note_off(clone).await } else { Ok(()) }
    }

    /// A machine is off: an update that waits goes first, for it drops the delta anyway; then the policy is asked, also when that update could
    /// not be done.
    async fn powered_off(self: &Arc<Self>, clone: &Named<CloneEntry>, event: ResetEvent) -> Result<PowerOutcome> {
        self.note_off_unless_attached(clone).await?;
        if clone.state.pending_version.is_none() {
            return self.reset_if_due(clone, event).await;
        }
        match self.do_what_waits(clone).await {
            Ok(waited) if waited.action == "updated" => {
                self.back_to_pool(clone).await?;
                return Ok(waited);
            }
            Ok(_) => {}
            // It is opened anew for the reset, which is of what its log says then.
            Err(error) => tracing::warn!(clone = %clone.name, %error, "whether its update was done is not known yet"),
        }
        let now: Named<CloneEntry> = self.catalog.get(&clone.name).await?;
        let mut outcome = self.reset_if_due(&now, event).await?;
        if let (Some(number), Some(why)) = (now.state.pending_version, self.put_off.why(&now.state)) {
            outcome.reason = format!("{}; {}", outcome.reason, goes_on_waiting(number, &why));
        }
        Ok(outcome)
    }

    /// Resets a clone whose machine is off, when its own rules or the policy say so.
    async fn reset_if_due(self: &Arc<Self>, clone: &Named<CloneEntry>, event: ResetEvent) -> Result<PowerOutcome> {
        if let (Some(rule), Ok(())) = (self.rule_due(clone), self.check_discard(clone)) {
            self.discard(clone, ResetOnto::SameBase, (&rule, "rule")).await?;
            self.back_to_pool(clone).await?;
            tracing::info!(clone = %clone.name, rule, "reset by its own rule");
            return Ok(outcome(clone, "reset", &rule, "rule"));
        }
        self.ask_reset(clone, event).await
    }

    /// Asks the policy whether the delta goes; `None` for a clone that has no base to go back to.
    async fn judge_reset(&self, clone: &Named<CloneEntry>, event: ResetEvent) -> Result<Option<Judged>> {
        let entry = &clone.state;
        let Some(base) = entry.record.base else { return Ok(None) };
        let (datastore, known) = self.find_base(base).await?;
        let template = self.catalog.remembered::<TemplateEntry>(&entry.template);
        let newer = template.as_ref().and_then(|t| t.state.published).filter(|p| *p > entry.version).map(|p| Release {
            image: image(&entry.template, p),
            published_ms: template.as_ref().map_or(0, |t| t.written_ms),
        });
        let mut labels = entry.labels.clone();
        labels.sort_by(|a, b| a.key.cmp(&b.key));
        let request = ResetRequest {
            event: event.clone(),
            subject: Subject {
                id: clone.name.to_string(),
                pool: entry.pool.as_ref().map(ToString::to_string).unwrap_or_default(),
                lifetime: entry.lifetime,
                created_ms: entry.record.created_ms,
                last_reset_ms: entry.last_reset_ms,
                last_exit: Exit::Unknown,
                attached: !self.open.attached(entry.record.id).is_empty(),
                held: self.held(entry).is_some(),
                delta: self.open.delta_bytes(entry.record.id).unwrap_or(0),
                size: entry.record.size,
                newer,
                labels,
            },
            base: {
                let mut base = advised(&known, &datastore.name);
                if known.room() == 0 && !known.retired {
                    base.state = BaseState::Ready;
                }
                base
            },
        };
        let advice = self.advisor.reset(&request).await;
        let (verdict, changed) = check::settle_reset(&request, advice.verdict, false);
        let attached = request.subject.attached;
        Ok(Some(Judged { event, attached, verdict, changed, by: advice.by, decision: advice.decision }))
    }

    /// What the policy says of a power event, in a sentence. Nothing is done.
    pub(super) async fn what_policy_says(&self, clone: &Named<CloneEntry>, event: ResetEvent) -> Result<String> {
        let Some(judged) = self.judge_reset(clone, event).await? else {
            return Ok("it is kept: it has no base to go back to".to_owned());
        };
        let (what, why) = match &judged.verdict {
            ResetVerdict::Discard(plan) if plan.timing == ResetTiming::WhenDetached && judged.attached => {
                ("it is reset when its machine lets go of it", plan.reason.as_str())
            }
            ResetVerdict::Discard(plan) => ("it is reset", plan.reason.as_str()),
            ResetVerdict::Hold(hold) => ("it is held", hold.reason.as_str()),
            ResetVerdict::AskAgain(_) => ("it is kept", "the policy is asked again later"),
            ResetVerdict::Keep | ResetVerdict::NoOpinion => {
                ("it is kept", judged.changed.unwrap_or("the policy keeps it"))
            }
        };
        Ok(format!("{what}: {why} ({})", judged.by))
    }

    /// Asks the policy whether the delta goes, and does what is safe of the answer.
    async fn ask_reset(self: &Arc<Self>, clone: &Named<CloneEntry>, event: ResetEvent) -> Result<PowerOutcome> {
        let Some(Judged { event, attached, verdict, changed, by, decision }) = self.judge_reset(clone, event).await?
        else {
            return Ok(outcome(clone, "kept", "it has no base to go back to", ""));
        };
        match verdict {
            ResetVerdict::Discard(plan) => {
                if plan.timing == ResetTiming::WhenDetached && attached {
                    self.reset_waits.lock().insert(clone.state.record.id);
                    return Ok(outcome(clone, "reset-when-detached", &plan.reason, &by));
                }
                self.discard(clone, plan.onto, (&plan.reason, &by)).await?;
                self.back_to_pool(clone).await?;
                tracing::info!(clone = %clone.name, %by, reason = %plan.reason, %decision, "reset");
                Ok(outcome(clone, "reset", &plan.reason, &by))
            }
            ResetVerdict::Hold(hold) => {
                let until_ms = hold.seconds.map(|s| self.clock.now_ms().saturating_add(u64::from(s) * 1000));
                self.set_hold(clone, Some(hold.reason.clone()), until_ms).await?;
                Ok(outcome(clone, "held", &hold.reason, &by))
            }
            ResetVerdict::AskAgain(seconds) => {
                self.ask_again(clone.state.record.id, event, seconds);
                Ok(outcome(clone, "kept", &format!("asked again in {seconds} s"), &by))
            }
            ResetVerdict::Keep | ResetVerdict::NoOpinion => {
                Ok(outcome(clone, "kept", changed.unwrap_or("the policy keeps it"), &by))
            }
        }
    }

    /// Discards what a clone holds, and notes why: what was said, and who said it.
    async fn discard(self: &Arc<Self>, clone: &Named<CloneEntry>, onto: ResetOnto, why: (&str, &str)) -> Result<()> {
        let (reason, policy) = why;
        let whose = Why { reason: reason.to_owned(), policy: policy.to_owned() };
        let done = self.discard_onto(clone, onto, &whose).await;
        self.note(Act { action: "clone reset", object: clone.name.as_str(), reason, policy }, &done).await;
        done
    }

    async fn discard_onto(self: &Arc<Self>, clone: &Named<CloneEntry>, onto: ResetOnto, why: &Why) -> Result<()> {
        self.check_discard(clone)?;
        if onto == ResetOnto::NewestBase {
            match self.onto_newest(clone, why).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                // What it wrote goes all the same.
                Err(Stuck::Before(error)) => {
                    tracing::warn!(clone = %clone.name, %error, "it is reset onto the base that it is on, not the newest");
                }
                Err(Stuck::Midway(error)) => return Err(error),
            }
        }
        let (_open, volume) = self.volume(clone).await?;
        self.check_not_elsewhere(clone, &volume).await?;
        drop((_open, volume));
        self.drop_delta(clone).await
    }

    /// Moves a clone to the published version; `false` when it is on it.
    async fn onto_newest(self: &Arc<Self>, clone: &Named<CloneEntry>, why: &Why) -> std::result::Result<bool, Stuck> {
        let version = self.version_for_clones(&clone.state.template, None).await?;
        if version.number == clone.state.version {
            return Ok(false);
        }
        self.rebase(clone, &clone.state.template, &version, why).await?;
        Ok(true)
    }

    fn ask_again(&self, id: CloneId, event: ResetEvent, seconds: u32) {
        let (me, clock) = (std::sync::Weak::clone(&self.me), self.clock.clone());
        self.handle.spawn(async move {
            clock.sleep(Duration::from_secs(u64::from(seconds))).await;
            let Some(gateway) = me.upgrade() else { return };
            let asked = async {
                let clone = gateway.find_clone(&CloneRef::Id(id)).await?;
                gateway.ask_reset(&clone, event).await
            };
            if let Err(error) = Box::pin(asked).await {
                tracing::warn!(%id, %error, "the reset policy could not be asked again");
            }
        });
    }

    /// The last machine that wrote to a device said good-bye: a power-off, unless somebody follows within the grace time.
    pub(super) fn clean_detach(&self, open: &Arc<Open>) {
        let Of::Clone(id) = open.of else { return };
        // Also when a reset waits for this: boot loader and kernel may connect one after the other, and a migration overlaps.
        let grace = self.settings.power_off_grace;
        let (me, clock) = (std::sync::Weak::clone(&self.me), self.clock.clone());
        let began = self.open.sessions_begun(id);
        self.handle.spawn(async move {
            clock.sleep(grace).await;
            let Some(gateway) = me.upgrade() else { return };
            // Somebody came, and maybe went again by losing the connection: no power-off.
            if gateway.open.sessions_begun(id) != began || !gateway.open.attached(id).is_empty() {
                return;
            }
            gateway.reset_waits.lock().remove(&id);
            let asked = async {
                let clone = gateway.find_clone(&CloneRef::Id(id)).await?;
                let off = gateway.powered_off(&clone, ResetEvent::PowerOff).await;
                let reason = "its last writer said good-bye over NBD, and nobody followed";
                let act = Act { action: "clone power", object: clone.name.as_str(), reason, policy: "" };
                gateway.note(act, &off.as_ref().map(drop).map_err(Clone::clone)).await;
                off
            };
            if let Err(error) = Box::pin(context::within(context::Request::new("nbd", None), asked)).await {
                tracing::warn!(%id, %error, "the power-off could not be handled");
            }
        });
    }

    /// What its own rules say of its delta, when they say that it goes.
    pub(super) fn rule_due(&self, clone: &Named<CloneEntry>) -> Option<String> {
        let rules = &clone.state.reset;
        let since = clone.state.last_reset_ms.unwrap_or(clone.state.record.created_ms);
        if rules.every_ms.is_some_and(|every| since.saturating_add(every) <= self.clock.now_ms()) {
            return Some("its interval is over".to_owned());
        }
        let (most, has) = rules.at_bytes.zip(self.open.delta_bytes(clone.state.record.id))?;
        (has >= most).then(|| format!("its delta has {has} bytes of {most}"))
    }

    /// Resets what its own rules say: at an interval, or past a size. Never a held clone, and none whose machine was not seen to be
    /// switched off: it may be about to come back after a restart or a lost connection.
    pub(super) async fn apply_reset_rules(self: Arc<Self>) {
        for clone in self.catalog.remembered_all::<CloneEntry>() {
            let off = self.machines.is_off(clone.state.record.id);
            let Some(rule) = self.rule_due(&clone).filter(|_| off) else { continue };
            // What is remembered may be of yesterday: another gateway may have reset it.
            let now = match self.catalog.find::<CloneEntry>(&clone.name).await {
                Ok(Some(now)) if self.rule_due(&now).is_some() && self.check_discard(&now).is_ok() => now,
                _ => continue,
            };
            match self.discard(&now, ResetOnto::SameBase, (&rule, "rule")).await {
                Ok(()) => tracing::info!(clone = %clone.name, rule, "reset by its own rule"),
                Err(error) => tracing::warn!(clone = %clone.name, %error, "its reset rule failed"),
            }
        }
    }

    async fn set_hold(&self, clone: &Named<CloneEntry>, why: Option<String>, until_ms: Option<u64>) -> Result<()> {
        let set = |entry: &mut CloneEntry| {
            entry.hold.clone_from(&why);
            entry.hold_until_ms = until_ms;
            Ok(())
        };
        self.catalog.change(&clone.name, set).await.map(drop)
    }

    pub(super) async fn do_hold_clone(self: Arc<Self>, clone: String, why: Option<String>) -> Result<Touched> {
        check_why(why.as_deref())?;
        let clone = self.find_clone(&clone.parse()?).await?;
        self.set_hold(&clone, why, None).await?;
        Ok(Touched { names: vec![clone.name.to_string()], ..Touched::default() })
    }

    pub(super) async fn do_set_lifetime(
        self: Arc<Self>,
        clone: String,
        lifetime: Option<Lifetime>,
        rules: Option<ResetRulesView>,
    ) -> Result<Touched> {
        let clone = self.find_clone(&clone.parse()?).await?;
        let rules = rules.map(|rules| rules.checked()).transpose()?;
        let set = |entry: &mut CloneEntry| {
            entry.lifetime = lifetime.unwrap_or(entry.lifetime);
            if let Some(rules) = &rules {
                entry.reset = rules.clone();
            }
            Ok(())
        };
        self.catalog.change(&clone.name, set).await?;
        Ok(Touched { names: vec![clone.name.to_string()], ..Touched::default() })
    }
}

/// Refuses a reason that is too long.
pub(super) fn check_why(why: Option<&str>) -> Result<()> {
    const WHY_BYTES_MAX: usize = 512;
    match why {
        Some(why) if why.len() > WHY_BYTES_MAX => {
            Err(Error::invalid("bad-text", format!("a reason has at most {WHY_BYTES_MAX} bytes")))
        }
        _ => Ok(()),
    }
}

/// What became of a power event.
pub(super) fn outcome(clone: &Named<CloneEntry>, action: &str, reason: &str, by: &str) -> PowerOutcome {
    PowerOutcome {
        clone: clone.name.to_string(),
        action: action.to_owned(),
        reason: reason.to_owned(),
        by: by.to_owned(),
    }
}
