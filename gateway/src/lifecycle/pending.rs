//! An update that waits until the machine of its clone is off: done then, or put off with the reason.
//!
//! What keeps such an update from being done, as a snapshot, a version that is gone or a store without room, keeps neither the machine from
//! booting nor its delta from being reset: the clone stays on the version that it is on, the update goes on waiting, and `clone show` says why.

use std::collections::HashMap;
use std::sync::Arc;

use clonegate_core::format::catalog::CloneEntry;
use clonegate_core::ids::{CloneId, Name};
use clonegate_core::{Error, Result};
use parking_lot::Mutex;

use super::audit::{Act, Why};
use super::gateway::Gateway;
use super::power::outcome;
use super::update::Stuck;
use super::views::PowerOutcome;
use crate::catalog::Named;

/// Why updates that wait came to nothing when this gateway last tried them, with the version that each is to.
#[derive(Debug, Default)]
pub(super) struct PutOff(Mutex<HashMap<CloneId, (u32, String)>>);

impl PutOff {
    fn note(&self, id: CloneId, version: u32, error: &Error) {
        let hint = error.what_to_do().map(|hint| format!(" ({hint})")).unwrap_or_default();
        self.0.lock().insert(id, (version, format!("{}{hint}", error.message())));
    }

    /// Forgets a clone whose update is done, or that is gone.
    pub(super) fn forget(&self, id: CloneId) {
        self.0.lock().remove(&id);
    }

    /// Why the update that waits for a clone came to nothing.
    pub(super) fn why(&self, entry: &CloneEntry) -> Option<String> {
        let put_off = self.0.lock();
        let (version, why) = put_off.get(&entry.record.id)?;
        (entry.pending_version == Some(*version)).then(|| why.clone())
    }
}

/// The version that a clone moves to when its machine is off: one of its template, or the one that it came from.
pub(super) fn pending(entry: &CloneEntry) -> Option<(&Name, u32)> {
    let number = entry.pending_version?;
    let from = entry.moved_from.as_ref().filter(|from| from.version == number);
    Some((from.map_or(&entry.template, |from| &from.template), number))
}

/// What is said of an update that goes on waiting.
pub(super) fn goes_on_waiting(version: u32, why: &str) -> String {
    format!("its update to version {version} goes on waiting: {why}")
}

impl Gateway {
    /// Does what waits for a time when the machine is off: an update. One that cannot be done is told of and goes on waiting.
    ///
    /// # Errors
    /// When the move was begun and it is not known what became of it. Then the clone must not be attached before it is opened anew.
    pub(super) async fn do_what_waits(self: &Arc<Self>, clone: &Named<CloneEntry>) -> Result<PowerOutcome> {
        let Some(number) = clone.state.pending_version else {
            return Ok(outcome(clone, "kept", "nothing waits for it", ""));
        };
        // A held clone, or one that somebody has open, is switched on as it is; the update goes on waiting.
        if let Err(why) = self.check_discard(clone) {
            return Ok(outcome(clone, "kept", why.message(), ""));
        }
        let id = clone.state.record.id;
        let stuck = match Box::pin(self.try_what_waits(clone, number)).await {
            Ok(done) => {
                self.put_off.forget(id);
                return Ok(done);
            }
            Err(stuck) => stuck,
        };
        let reason = format!("to version {number} of {}: {}", clone.state.template, WAITED);
        let act = || Act { action: "clone update", object: clone.name.as_str(), reason: &reason, policy: "" };
        let midway = matches!(stuck, Stuck::Midway(_));
        let error = stuck.into_error();
        if midway {
            // It was opened anew where that was possible, which tells what its log says.
            let now = self.catalog.get::<CloneEntry>(&clone.name).await;
            if now.is_ok_and(|now| now.state.record.id == id && now.state.pending_version != Some(number)) {
                self.put_off.forget(id);
                self.note(act(), &Ok(())).await;
                return Ok(updated(clone, number));
            }
        }
        tracing::warn!(clone = %clone.name, version = number, midway, %error, "an update that waited could not be done");
        self.put_off.note(id, number, &error);
        self.note(act(), &Err(error.clone())).await;
        if midway {
            return Err(error);
        }
        Ok(outcome(clone, "kept", &goes_on_waiting(number, error.message()), "update"))
    }

    async fn try_what_waits(
        self: &Arc<Self>,
        clone: &Named<CloneEntry>,
        number: u32,
    ) -> std::result::Result<PowerOutcome, Stuck> {
        // Opening it finishes what an earlier try has left.
        drop(self.volume(clone).await?);
        let clone: Named<CloneEntry> = self.catalog.get(&clone.name).await?;
        if clone.state.pending_version != Some(number) {
            return Ok(if clone.state.version == number {
                updated(&clone, number)
            } else {
                outcome(&clone, "kept", "nothing waits for it", "")
            });
        }
        let why = Why::of(WAITED);
        // A pending version that it came from is a move to be taken back, with what the clone held then.
        if let Some(from) = clone.state.moved_from.as_ref().filter(|from| from.version == number)
            && self.take_move_back(&clone, from, &why).await?
        {
            let what = format!("it is back on version {number} with what it held");
            return Ok(outcome(&clone, "updated", &what, "update"));
        }
        let Some((template, _)) = pending(&clone.state) else { return Ok(updated(&clone, number)) };
        let version = self.version_for_clones(template, Some(number)).await?;
        self.rebase(&clone, template, &version, &why).await?;
        Ok(updated(&clone, number))
    }
}

/// Why it is done now.
const WAITED: &str = "it waited until its machine was off";

fn updated(clone: &Named<CloneEntry>, number: u32) -> PowerOutcome {
    outcome(clone, "updated", &format!("version {number} waited until it was off"), "update")
}
