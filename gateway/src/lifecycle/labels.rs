//! Labels of a clone after it is made: what policies see of it, and which machine boots from it.

use std::sync::Arc;

use clonegate_core::format::catalog::CloneEntry;
use clonegate_core::limits::{LABEL_BYTES_MAX, LABELS_MAX};
use clonegate_core::{Error, Result};

use super::boot_labels;
use super::gateway::Gateway;
use super::views::{ChangeLabels, Labels, Touched, from_labels, to_labels};

/// Refuses labels that are too many, too long, or no text of one line.
///
/// # Errors
/// `Invalid` with code `bad-label`; those of [`boot_labels::check`].
pub(super) fn check_labels(labels: &Labels) -> Result<()> {
    let wrong = |what: String| Error::invalid("bad-label", what).hint("write KEY=VALUE, on one line");
    if labels.len() > LABELS_MAX {
        return Err(wrong(format!("there are {} labels, and at most {LABELS_MAX} are kept", labels.len())));
    }
    for (key, value) in labels {
        if key.is_empty() || key.len() + value.len() > LABEL_BYTES_MAX {
            return Err(wrong(format!("a label has a key, and at most {LABEL_BYTES_MAX} bytes")).on(shown(key)));
        }
        if key.chars().chain(value.chars()).any(char::is_control) {
            return Err(wrong("a label has no control characters".to_owned()).on(shown(key)));
        }
    }
    boot_labels::check(labels)
}

fn shown(key: &str) -> String {
    key.chars().take(64).collect()
}

impl Gateway {
    pub(super) async fn do_change_labels(
        self: Arc<Self>,
        clone: String,
        change: ChangeLabels,
        dry_run: bool,
    ) -> Result<Touched> {
        let clone = self.find_clone(&clone.parse()?).await?;
        let mut notes = Vec::new();
        for key in &change.remove {
            if !clone.state.labels.iter().any(|label| label.key == *key) {
                notes.push(format!("there is no label {}", shown(key)));
            }
        }
        let changed = |entry: &CloneEntry| {
            let mut labels = from_labels(&entry.labels);
            labels.retain(|key, _| !change.remove.contains(key));
            labels.extend(change.set.clone());
            check_labels(&labels).map(|()| to_labels(&labels))
        };
        let machines = boot_labels::machine_keys(&change.set);
        if !machines.is_empty() {
            for other in self.catalog.list::<CloneEntry>().await?.into_iter().filter(|other| other.name != clone.name) {
                let theirs = boot_labels::machine_keys(&from_labels(&other.state.labels));
                if let Some(key) = machines.iter().find(|key| theirs.contains(key)) {
                    let first = clone.name.as_str().min(other.name.as_str());
                    notes.push(format!("{} has {key} too: the machine boots {first}, the first by name", other.name));
                }
            }
        }
        if dry_run {
            changed(&clone.state)?;
        } else {
            let set = |entry: &mut CloneEntry| {
                entry.labels = changed(entry)?;
                Ok(())
            };
            self.catalog.change(&clone.name, set).await?;
        }
        Ok(Touched { dry_run, names: vec![clone.name.to_string()], notes, ..Touched::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_few_short_and_on_one_line() {
        let check = |labels: Labels, right: bool| assert_eq!(check_labels(&labels).is_ok(), right, "{labels:?}");
        let one = |key: &str, value: &str| Labels::from([(key.to_owned(), value.to_owned())]);
        check(one("boot.args", "ip=dhcp root=/dev/nbd0p1 rw"), true);
        check(one("", "x"), false);
        check(one("a", "two\nlines"), false);
        check(one("a\u{7f}", ""), false);
        check(one("a", &"x".repeat(LABEL_BYTES_MAX)), false);
        check((0..=LABELS_MAX).map(|n| (n.to_string(), String::new())).collect(), false);
    }
}
