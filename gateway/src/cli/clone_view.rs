//! How clones are printed.

use super::Session;
use super::output::{self, Form};
use crate::lifecycle::views::CloneView;

/// Prints clones.
pub(super) fn show_list(clones: &[CloneView], session: &Session) {
    if session.form == Form::Json {
        output::json(&clones);
    } else {
        output::table(&HEADERS, &clones.iter().map(row).collect::<Vec<_>>());
    }
}

const HEADERS: [&str; 7] = ["NAME", "TEMPLATE", "DATASTORE", "SIZE", "DURABILITY", "LIFETIME", "ATTACHED"];

fn row(clone: &CloneView) -> Vec<String> {
    vec![
        clone.name.clone(),
        format!("{}:{}", clone.template, clone.version),
        clone.datastore.clone(),
        output::size(clone.size),
        format!("{:?}", clone.durability).to_lowercase(),
        format!("{:?}", clone.lifetime).to_lowercase(),
        output::or_dash((!clone.attached.is_empty()).then(|| clone.attached.join(","))),
    ]
}

pub(super) fn show(clone: &CloneView, session: &Session) {
    if session.form == Form::Json {
        output::json(clone);
        return;
    }
    let mut facts = vec![
        ("name", clone.name.clone()),
        ("id", clone.id.clone()),
        ("kind", clone.kind.clone()),
        ("template", format!("{}:{}", clone.template, clone.version)),
        ("datastore", clone.datastore.clone()),
        ("base", clone.base.as_ref().map_or_else(|| "none".to_owned(), |base| format!("{base} slot {}", clone.slot))),
        ("size", format!("{} ({} bytes)", output::size(clone.size), clone.size)),
        ("durability", format!("{:?}", clone.durability).to_lowercase()),
        ("lifetime", format!("{:?}", clone.lifetime).to_lowercase()),
        ("created", output::time(clone.created_ms)),
        ("disk", format!("{}{}", session.server.trim_end_matches('/'), clone.disk)),
    ];
    if !clone.attached.is_empty() {
        facts.push(("attached", clone.attached.join(", ")));
    }
    if let Some(why) = &clone.hold {
        facts.push(("held", why.clone()));
    }
    if let Some(version) = clone.pending_version {
        let put_off = clone.pending_failed.as_ref().map(|why| format!("; put off: {why}")).unwrap_or_default();
        facts.push(("waits", format!("moves to version {version} when its machine is off{put_off}")));
    }
    if let (Some(why), true) = (&clone.may_run, clone.attached.is_empty()) {
        facts.push(("machine", why.clone()));
    }
    if let Some(seconds) = clone.reset.every_seconds {
        facts.push(("reset every", humantime::format_duration(std::time::Duration::from_secs(seconds)).to_string()));
    }
    if let Some(bytes) = clone.reset.at_bytes {
        facts.push(("reset at", output::size(bytes)));
    }
    if clone.lost_tail {
        facts.push(("lost-tail", "flushed writes of a lost gateway may be missing".to_owned()));
    }
    if let Some(bytes) = clone.delta_bytes {
        facts.push(("delta", output::size(bytes)));
    }
    output::facts(&facts);
}
