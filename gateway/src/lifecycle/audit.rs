//! The audit log: who did what to which object, with what result, and why policy decided.
//!
//! Entries are put into the home as objects that are never changed. What comes while one is on its way goes together into the next, so a
//! thousand power-offs at once are a few objects. An entry is in the home before the request that it is of is answered.

use std::sync::Arc;
use std::time::Duration;

use clonegate_core::format::audit::{AuditEntry, AuditRecord};
use clonegate_core::format::envelope;
use clonegate_core::ids::GatewayId;
use clonegate_core::limits::{AUDIT_BATCH_MAX, AUDIT_KEPT_MS, AUDIT_OBJECTS_MAX};
use clonegate_core::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::context;
use super::events::EventKind;
use super::gateway::Gateway;
use super::views::{AuditView, ListAudit, Page};
use crate::clock::Clock;
use crate::store::{self, Store, keys};

/// Milliseconds of a day.
const DAY_MS: u64 = 24 * 3_600_000;
/// How long an answer waits for its entry; a home that does not answer must not stop everything.
const PATIENCE: Duration = Duration::from_secs(10);
/// Items of a page when nobody says.
const PAGE_USUAL: usize = 100;
/// Objects that one page looks through; a rare object's page ends with a cursor.
const LOOKED_AT_MAX: usize = 5000;
/// Longest text of an entry, characters; the rest is cut.
const TEXT_MAX: usize = 500;

/// Why something is done, and the policy that said so.
#[derive(Debug, Clone, Default)]
pub(super) struct Why {
    pub(super) reason: String,
    pub(super) policy: String,
}

impl Why {
    /// For this reason, of nobody's policy.
    pub(super) fn of(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), policy: String::new() }
    }
}

/// What is to be noted of something that was done.
#[derive(Debug, Default)]
pub(super) struct Act<'a> {
    /// Noun and verb.
    pub(super) action: &'a str,
    /// To what.
    pub(super) object: &'a str,
    /// Why.
    pub(super) reason: &'a str,
    /// The policy that decided.
    pub(super) policy: &'a str,
}

type Waiting = (AuditEntry, oneshot::Sender<Result<()>>);

/// The log of one home, as one gateway writes and reads it.
#[derive(Debug)]
pub(super) struct Audit {
    home: Store,
    gateway: GatewayId,
    clock: Clock,
    waiting: Mutex<Vec<Waiting>>,
    turn: tokio::sync::Mutex<()>,
}

impl Audit {
    pub(super) fn new(home: Store, gateway: GatewayId, clock: Clock) -> Self {
        Self { home, gateway, clock, waiting: Mutex::default(), turn: tokio::sync::Mutex::default() }
    }

    /// Puts an entry into the home, together with those that wait.
    async fn append(&self, entry: AuditEntry) -> Result<()> {
        let (done, mut answer) = oneshot::channel();
        self.waiting.lock().push((entry, done));
        loop {
            let _turn = self.turn.lock().await;
            match answer.try_recv() {
                Ok(done) => return done,
                Err(oneshot::error::TryRecvError::Empty) => {}
                Err(oneshot::error::TryRecvError::Closed) => {
                    return Err(Error::internal("audit-lost", "whoever wrote the entry was cut short"));
                }
            }
            let batch: Vec<Waiting> = {
                let mut waiting = self.waiting.lock();
                let most = waiting.len().min(AUDIT_BATCH_MAX);
                waiting.drain(..most).collect()
            };
            let (entries, answers): (Vec<AuditEntry>, Vec<_>) = batch.into_iter().unzip();
            let written_ms = self.clock.now_ms();
            let record = AuditRecord { gateway: self.gateway, nonce: self.clock.nonce(), written_ms, entries };
            let put = async {
                let key = keys::audit(written_ms / DAY_MS, written_ms, self.gateway, record.nonce);
                self.home.put_new(&key, envelope::encode(&record)?).await.map(drop)
            };
            let put = put.await;
            for answer in answers {
                drop(answer.send(put.clone()));
            }
        }
    }

    /// One page, the newest first.
    async fn page(&self, query: &ListAudit) -> Result<Page<AuditView>> {
        let limit = query.list.limit.unwrap_or(PAGE_USUAL).max(1);
        let cursor = query.list.cursor.as_deref().map(parse_cursor).transpose()?;
        let mut items: Vec<AuditView> = Vec::new();
        let mut looked_at = 0;
        for day in self.days().await?.into_iter().rev() {
            if cursor.as_ref().is_some_and(|(before, ..)| day > *before) {
                continue;
            }
            let mut names: Vec<String> =
                self.home.list(&keys::audit_day(day)).await?.into_iter().map(|listed| listed.key).collect();
            names.sort_unstable();
            for name in names.into_iter().rev() {
                let until = match &cursor {
                    Some((before, at, index)) if *before == day => match name.as_str().cmp(at.as_str()) {
                        std::cmp::Ordering::Greater => continue,
                        std::cmp::Ordering::Equal => *index,
                        std::cmp::Ordering::Less => usize::MAX,
                    },
                    _ => usize::MAX,
                };
                let Some(body) = self.home.find(&keys::audit_day(day).key(&name)?).await? else { continue };
                let record: AuditRecord =
                    envelope::decode(&body).map_err(|e| e.on(format!("audit/{day:05}/{name}")))?;
                for (index, entry) in record.entries.iter().enumerate().rev().filter(|(index, _)| *index < until) {
                    let wanted = query.object.as_ref().is_none_or(|object| *object == entry.object)
                        && query.action.as_ref().is_none_or(|action| *action == entry.action);
                    if wanted {
                        items.push(view(&record, entry, &format!("{day}/{name}/{index}")));
                    }
                    if items.len() == limit {
                        let next = Some(format!("{day}/{name}/{index}"));
                        return Ok(Page { items, next });
                    }
                }
                looked_at += 1;
                if looked_at >= LOOKED_AT_MAX {
                    return Ok(Page { items, next: Some(format!("{day}/{name}/0")) });
                }
            }
        }
        Ok(Page { items, next: None })
    }

    async fn days(&self) -> Result<Vec<u64>> {
        let mut days: Vec<u64> =
            self.home.list_dirs(&keys::audits()).await?.iter().filter_map(|day| day.parse().ok()).collect();
        days.sort_unstable();
        Ok(days)
    }

    /// Takes whole days away that are past their time, and the oldest when there is too much. Today stays.
    async fn forget(&self) -> Result<()> {
        let today = self.clock.now_ms() / DAY_MS;
        let mut objects = 0;
        for day in self.days().await?.into_iter().rev() {
            let listed = self.home.list(&keys::audit_day(day)).await?;
            objects += listed.len();
            let old = day.saturating_add(AUDIT_KEPT_MS / DAY_MS) < today;
            if day < today && (old || objects > AUDIT_OBJECTS_MAX) {
                for object in &listed {
                    self.home.delete(&keys::audit_day(day).key(&object.key)?).await?;
                }
            }
        }
        Ok(())
    }
}

fn parse_cursor(text: &str) -> Result<(u64, String, usize)> {
    let wrong = || Error::invalid("bad-cursor", "the cursor is none of this list").hint("begin the list anew");
    let mut parts = text.split('/');
    let (day, name, index) = (parts.next(), parts.next(), parts.next());
    let day = day.and_then(|day| day.parse().ok()).ok_or_else(wrong)?;
    let index = index.and_then(|index| index.parse().ok()).ok_or_else(wrong)?;
    Ok((day, name.ok_or_else(wrong)?.to_owned(), index))
}

fn view(record: &AuditRecord, entry: &AuditEntry, id: &str) -> AuditView {
    let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    AuditView {
        id: id.to_owned(),
        at_ms: entry.at_ms,
        by: entry.by.clone(),
        action: entry.action.clone(),
        object: entry.object.clone(),
        outcome: entry.outcome.clone(),
        reason: some(&entry.reason),
        policy: some(&entry.policy),
        gateway: record.gateway.to_string(),
    }
}

impl Gateway {
    /// Notes in the audit log what was done, and tells those who listen to events. A log that cannot be written is told in this
    /// gateway's own log and stops nothing.
    pub(super) async fn note(&self, act: Act<'_>, result: &Result<()>) {
        if result.is_ok()
            && let Some(kind) = EventKind::of_action(act.action)
        {
            self.events.tell(kind, act.object, serde_json::json!({ "reason": act.reason, "policy": act.policy }));
        }
        if let Some(request) = context::current() {
            request.note_audited();
        }
        let outcome = result.as_ref().err().map_or("ok", Error::code);
        self.write_audit(context::by(), act.action, act.object, outcome, act.reason, act.policy).await;
    }

    /// Notes a request that no verb has noted itself.
    pub async fn audit_request(&self, by: &str, action: &str, object: &str, outcome: &str, reason: &str) {
        self.write_audit(by.to_owned(), action, object, outcome, reason, "").await;
    }

    pub(super) async fn write_audit(
        &self,
        by: String,
        action: &str,
        object: &str,
        outcome: &str,
        reason: &str,
        policy: &str,
    ) {
        let cut = |text: &str| text.chars().take(TEXT_MAX).collect::<String>();
        let entry = AuditEntry {
            at_ms: self.clock.now_ms(),
            by,
            action: cut(action),
            object: cut(object),
            outcome: cut(outcome),
            reason: cut(reason),
            policy: cut(policy),
        };
        let Ok(gateway) = self.me() else { return };
        let shown = entry.clone();
        // A task of its own: an asker that goes away takes no entry with it.
        let makes_room = store::makes_room();
        let task = self.handle.spawn(async move {
            let append = gateway.audit.append(entry);
            if makes_room { store::making_room(append).await } else { append.await }
        });
        let written = match tokio::time::timeout(PATIENCE, task).await {
            Ok(Ok(written)) => written,
            Ok(Err(_)) => Err(Error::new(ErrorKind::Internal, "audit-lost", "the task was cut short")),
            Err(_) => Err(Error::unavailable("audit-late", "the home does not answer; it is written when it does")),
        };
        if let Err(error) = written {
            tracing::error!(by = %shown.by, action = %shown.action, object = %shown.object, outcome = %shown.outcome, %error, "not in the audit log");
        }
    }

    pub(super) async fn do_list_audit(self: Arc<Self>, query: ListAudit) -> Result<Page<AuditView>> {
        self.audit.page(&query).await
    }

    /// Takes away what is past its time.
    pub(super) async fn tend_audit(self: Arc<Self>) {
        if let Err(error) = self.audit.forget().await {
            tracing::debug!(%error, "the audit log could not be tended");
        }
    }
}
