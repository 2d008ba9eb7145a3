//! `clonegate fsck`

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clonegate_core::{Error, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Session;
use super::failure::Failure;
use super::output::{self, Form};
use crate::clock::Clock;
use crate::config;
use crate::lifecycle::verify::{Watch, check_datastore};
use crate::lifecycle::views::FsckReport;
use crate::store::{Store, StoreConfig};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  clonegate fsck --repair\n  clonegate fsck --deep --datastore file:///srv/clonegate/store\n  clonegate fsck --deep --config /etc/clonegate.toml"
)]
pub(super) struct Fsck {
    /// Remove what has no owner and mend what can be mended
    #[arg(long, conflicts_with_all = ["datastore", "config"])]
    repair: bool,
    /// Read every block and chunk and verify its checksum
    #[arg(long)]
    deep: bool,
    /// What is younger may belong to a request under way, and is left alone
    #[arg(long, default_value = "1h")]
    grace: humantime::Duration,
    /// Check this store by itself, without a gateway; may be given again. Nothing is changed, and names are not looked at
    #[arg(long, value_name = "URL")]
    datastore: Vec<String>,
    /// Check the datastores of this configuration by themselves, without a gateway
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Shows how far a check without a gateway is.
struct Bar(ProgressBar);

impl Watch for Bar {
    fn now(&self, what: &str) {
        self.0.set_message(what.to_owned());
    }

    fn step(&self, count: u64) {
        self.0.inc(count);
    }
}

async fn alone(fsck: &Fsck) -> Result<FsckReport> {
    let mut stores: Vec<(String, StoreConfig)> =
        fsck.datastore.iter().map(|url| (url.clone(), StoreConfig::new(url.as_str()))).collect();
    if let Some(path) = &fsck.config {
        let config = config::load(Some(path))?;
        stores.extend(config.datastore.iter().map(|datastore| (datastore.name.clone(), datastore.store())));
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8));
    let style = ProgressStyle::with_template("{spinner} {human_pos} objects, blocks and chunks, {elapsed}: {msg}");
    let bar = Bar(bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner())));
    let mut sum = FsckReport::default();
    for (name, config) in stores {
        let store = Store::open(&config, &Clock::system())?;
        let report = check_datastore(&store, &name, fsck.deep, &bar).await?;
        sum.clones += report.clones;
        sum.objects += report.objects;
        sum.grace += report.grace;
        sum.verified += report.verified;
        sum.findings.extend(report.findings);
    }
    bar.0.finish_and_clear();
    Ok(sum)
}

pub(super) async fn run(fsck: Fsck, session: &Session) -> std::result::Result<(), Failure> {
    let report = if fsck.datastore.is_empty() && fsck.config.is_none() {
        let grace: Duration = fsck.grace.into();
        let query = [
            ("repair", fsck.repair.to_string()),
            ("grace_ms", grace.as_millis().to_string()),
            ("deep", fsck.deep.to_string()),
        ];
        session.client()?.post("fsck", &query, &serde_json::json!({})).await?
    } else {
        alone(&fsck).await?
    };
    show(&report, session);
    let left = report.findings.iter().filter(|f| !f.repaired).count();
    if left == 0 {
        return Ok(());
    }
    Err(Error::corrupt("not-clean", format!("{left} findings are not mended"))
        .hint("`clonegate fsck --repair` mends what can be mended")
        .into())
}

fn show(report: &FsckReport, session: &Session) {
    if session.form == Form::Json {
        return output::json(report);
    }
    for finding in &report.findings {
        let done = if finding.repaired { " (mended)" } else { "" };
        output::line(&format!("{}: {}{done}", finding.object, finding.what));
    }
    let verified = match report.verified {
        0 => String::new(),
        count => format!(", {count} blocks and chunks verified"),
    };
    let grace = match report.grace {
        0 => String::new(),
        count => format!(" ({count} of them to be deleted after their grace)"),
    };
    output::line(&format!(
        "{} clones, {} objects{grace}{verified}: {}",
        report.clones,
        report.objects,
        if report.findings.is_empty() { "clean".to_owned() } else { format!("{} findings", report.findings.len()) }
    ));
}
