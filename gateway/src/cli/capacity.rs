//! `clonegate capacity`

use bytesize::ByteSize;
use clap::Args;

use super::Session;
use super::failure::Failure;
use super::output::{self, Form};
use crate::lifecycle::views::{AlertView, CapacityView};

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  clonegate capacity --template win11 --clones 300 --average 5GiB")]
pub(super) struct Capacity {
    /// The template
    #[arg(long)]
    template: String,
    /// How many clones
    #[arg(long)]
    clones: u32,
    /// Average delta; measured or usual ones otherwise
    #[arg(long)]
    average: Option<ByteSize>,
    /// Count two versions, as there are while an update is staged
    #[arg(long)]
    staged_update: bool,
}

pub(super) async fn run(capacity: Capacity, session: &Session) -> Result<(), Failure> {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("template", &capacity.template).append_pair("clones", &capacity.clones.to_string());
    query.append_pair("staged_update", &capacity.staged_update.to_string());
    if let Some(average) = capacity.average {
        query.append_pair("average", &average.as_u64().to_string());
    }
    let view: CapacityView = session.client()?.get(&format!("capacity?{}", query.finish())).await?;
    if session.form == Form::Json {
        output::json(&view);
        return Ok(());
    }
    output::line(&format!("{} clones of {} need {} bases", view.clones, view.template, view.bases));
    let rows: Vec<Vec<String>> = view
        .lines
        .iter()
        .map(|line| {
            let part = line.bytes.saturating_mul(100).checked_div(view.full_clones_bytes).unwrap_or(0);
            vec![
                line.case.clone(),
                output::size(line.delta_bytes),
                output::size(line.bytes),
                format!("{part} %"),
                output::size(line.whole_bases_bytes),
            ]
        })
        .collect();
    output::table(&["CASE", "DELTA", "SPACE", "OF FULL CLONES", "WITH WHOLE BASES"], &rows);
    let limits: Vec<Vec<String>> = view
        .limits
        .iter()
        .map(|l| vec![l.datastore.clone(), output::size(l.free_bytes), l.clones.to_string(), l.binds.clone()])
        .collect();
    output::table(&["DATASTORE", "FREE", "FURTHER CLONES", "LIMIT"], &limits);
    output::facts(&[
        ("full clones", output::size(view.full_clones_bytes)),
        ("free", output::size(view.free_bytes)),
        ("limit", view.binds.clone()),
        (
            "full in",
            match (view.days_until_full, view.growth_bytes_per_day) {
                (Some(days), Some(growth)) => format!("{days} days, at {} a day", output::size(growth)),
                _ => "not known: it takes ten clones that wrote for an hour".to_owned(),
            },
        ),
        (
            "now",
            format!(
                "{} clones in {} instead of {}: {} % saved",
                view.now.clones,
                output::size(view.now.stored_bytes),
                output::size(view.now.full_clones_bytes),
                view.now.saved_percent
            ),
        ),
    ]);
    let alerts: Vec<AlertView> = session.client()?.get("alerts").await?;
    for alert in alerts {
        let detail = alert.detail.map(|detail| format!("; {detail}")).unwrap_or_default();
        output::line(&format!("{}: {} {} is {} % full{detail}", alert.level, alert.kind, alert.name, alert.percent));
    }
    Ok(())
}
