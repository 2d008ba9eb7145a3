//! `clonegate cache …`

use clap::Subcommand;

use super::Session;
use super::failure::Failure;
use super::output::{self, Form};
use crate::lifecycle::views::CacheView;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Show what the iCache holds and what it spared
    #[command(after_help = "Example:\n  clonegate cache show")]
    Show,
    /// Forget everything cached; costs time only
    #[command(after_help = "Example:\n  clonegate cache drop")]
    Drop,
}

pub(super) async fn run(verb: Verb, session: &Session) -> Result<(), Failure> {
    let client = session.client()?;
    match verb {
        Verb::Show => {
            let cache: CacheView = client.get("cache").await?;
            if session.form == Form::Json {
                output::json(&cache);
            } else {
                output::facts(&[
                    ("capacity", output::size(cache.capacity)),
                    ("used", format!("{} in {} lines", output::size(cache.used), cache.lines)),
                    ("hits", cache.hits.to_string()),
                    ("misses", cache.misses.to_string()),
                    ("joins", cache.joins.to_string()),
                    ("from the store", output::size(cache.store_bytes)),
                ]);
            }
        }
        Verb::Drop => {
            client.send(reqwest::Method::DELETE, "cache", &[], super::client::Body::None).await?;
            output::line("the iCache is empty");
        }
    }
    Ok(())
}
