//! `clonegate template …`

use clap::Subcommand;

use super::failure::Failure;
use super::output::{self, Form};
use super::{DryRun, Session, touched};
use crate::lifecycle::views::{TemplateView, Touched};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Show all templates
    #[command(after_help = "Example:\n  clonegate template list")]
    List,
    /// Show one template and its versions
    #[command(after_help = "Example:\n  clonegate template show win11")]
    Show {
        /// Its name
        name: String,
    },
    /// Give new clones this version from now on
    #[command(after_help = "Example:\n  clonegate template publish win11:2")]
    Publish {
        /// NAME:VERSION; NAME alone takes the newest version
        template: String,
    },
    /// Give new clones the version that was published before
    #[command(after_help = "Example:\n  clonegate template rollback win11")]
    Rollback {
        /// Its name
        name: String,
    },
    /// Delete a template, or one version of it, that no clone needs
    #[command(after_help = "Example:\n  clonegate template delete win11:1 --dry-run")]
    Delete {
        /// NAME or NAME:VERSION
        template: String,
        #[command(flatten)]
        dry_run: DryRun,
    },
}

pub(super) async fn run(verb: Verb, session: &Session) -> Result<(), Failure> {
    let client = session.client()?;
    let path = |name: &str| format!("templates/{}", session.segment(name));
    match verb {
        Verb::List => {
            let all: Vec<TemplateView> = client.list("templates").await?;
            if session.form == Form::Json {
                output::json(&all);
            } else {
                let headers = ["NAME", "PUBLISHED", "VERSIONS", "SIZE", "CLONES", "DESCRIPTION"];
                output::table(&headers, &all.iter().map(row).collect::<Vec<_>>());
            }
        }
        Verb::Show { name } => show(&client.get(&path(&name)).await?, session),
        Verb::Publish { template } => {
            let (name, version) = super::template_and_version(&template)?;
            let body = serde_json::json!({ "version": version });
            show(&client.post(&format!("{}/publish", path(&name)), &[], &body).await?, session);
        }
        Verb::Rollback { name } => {
            show(&client.post(&format!("{}/rollback", path(&name)), &[], &serde_json::json!({})).await?, session);
        }
        Verb::Delete { template, dry_run } => {
            let (name, version) = super::template_and_version(&template)?;
            let mut query = dry_run.query();
            query.extend(version.map(|v| ("version", v.to_string())));
            let done: Touched = client.delete(&path(&name), &query).await?;
            touched("deleted", &done, session);
        }
    }
    Ok(())
}

fn row(template: &TemplateView) -> Vec<String> {
    let size = template.versions.last().map(|v| output::size(v.size));
    vec![
        template.name.clone(),
        output::or_dash(template.published.map(|v| v.to_string())),
        template.versions.len().to_string(),
        output::or_dash(size),
        template.versions.iter().map(|v| v.clones).sum::<u32>().to_string(),
        template.description.clone(),
    ]
}

pub(super) fn show(template: &TemplateView, session: &Session) {
    if session.form == Form::Json {
        output::json(template);
        return;
    }
    output::facts(&[
        ("name", template.name.clone()),
        ("description", template.description.clone()),
        ("made", output::time(template.created_ms)),
    ]);
    let rows: Vec<Vec<String>> = template
        .versions
        .iter()
        .map(|v| {
            vec![
                v.number.to_string(),
                v.state.clone(),
                output::size(v.size),
                output::size(v.used_bytes),
                output::size(v.stored_bytes),
                v.datastore.clone(),
                v.bases.to_string(),
                v.clones.to_string(),
                v.origin.clone(),
            ]
        })
        .collect();
    output::table(&["VERSION", "STATE", "SIZE", "NOT ZERO", "STORED", "DATASTORE", "BASES", "CLONES", "ORIGIN"], &rows);
    for version in &template.versions {
        for finding in &version.findings {
            output::line(&format!("version {}: {finding}", version.number));
        }
    }
}
