//! `clonegate fsck`

use std::time::Duration;

use clap::Args;
use clonegate_core::Error;

use super::Session;
use super::failure::Failure;
use super::output::{self, Form};
use crate::lifecycle::views::FsckReport;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  clonegate fsck --repair")]
pub(super) struct Fsck {
    /// Remove what has no owner and mend what can be mended
    #[arg(long)]
    repair: bool,
    /// What is younger may belong to a request under way, and is left alone
    #[arg(long, default_value = "1h")]
    grace: humantime::Duration,
}

pub(super) async fn run(fsck: Fsck, session: &Session) -> Result<(), Failure> {
    let grace: Duration = fsck.grace.into();
    let query = [("repair", fsck.repair.to_string()), ("grace_ms", grace.as_millis().to_string())];
    let report: FsckReport = session.client()?.post("fsck", &query, &serde_json::json!({})).await?;
    if session.form == Form::Json {
        output::json(&report);
    } else {
        for finding in &report.findings {
            let done = if finding.repaired { " (mended)" } else { "" };
            output::line(&format!("{}: {}{done}", finding.object, finding.what));
        }
        output::line(&format!(
            "{} clones, {} objects: {}",
            report.clones,
            report.objects,
            if report.findings.is_empty() { "clean".to_owned() } else { format!("{} findings", report.findings.len()) }
        ));
    }
    let left = report.findings.iter().filter(|f| !f.repaired).count();
    if left == 0 {
        return Ok(());
    }
    Err(Error::corrupt("not-clean", format!("{left} findings are not mended"))
        .hint("`clonegate fsck --repair` mends what can be mended")
        .into())
}
