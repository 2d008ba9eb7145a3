//! `clonegate template …`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use clonegate_core::ids::Name;

use super::client::Client;
use super::export::ExportFile;
use super::failure::Failure;
use super::image::{self, Bar, Format};
use super::output::{self, Form};
use super::{DryRun, Session, touched};
use crate::import;
use crate::lifecycle::views::{BaseView, TemplateView, Touched};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make a template of a disk image, or a new version of a template
    #[command(
        after_help = "Examples:\n  clonegate template import win11 win11.qcow2 --format qcow2\n  zstdcat debian.raw.zst | clonegate template import debian - --format raw\n  clonegate template import win11 s3://images/win11.raw --format raw --by-reference"
    )]
    Import(Import),
    /// Show all templates
    #[command(after_help = "Example:\n  clonegate template list")]
    List,
    /// Show one template and its versions
    #[command(after_help = "Example:\n  clonegate template show win11")]
    Show {
        /// Its name
        name: String,
    },
    /// Look into a draft for what would make its clones the same machine, and seal it: then it can be published
    #[command(after_help = "Examples:\n  clonegate template seal win11:2\n  clonegate template seal win11:2 --force")]
    Seal {
        /// NAME:VERSION; NAME alone takes the newest draft
        template: String,
        /// Whatever the checks find
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Keep so many old versions that no clone needs; older ones are deleted, now and after each publish
    #[command(
        after_help = "Examples:\n  clonegate template retain win11 --keep 3 --dry-run\n  clonegate template retain win11"
    )]
    Retain {
        /// Its name
        name: String,
        /// So many besides the published one; all otherwise
        #[arg(long)]
        keep: Option<u32>,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Give new clones this version from now on
    #[command(after_help = "Example:\n  clonegate template publish win11:2")]
    Publish {
        /// NAME:VERSION; NAME alone takes the newest version
        template: String,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Give new clones the version that was published before
    #[command(after_help = "Example:\n  clonegate template rollback win11")]
    Rollback {
        /// Its name
        name: String,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// The identity that new clones get
    #[command(subcommand)]
    Identity(super::identity::TemplateVerb),
    /// Write the bytes of a template version into a sparse raw or qcow2 file on this machine
    #[command(
        after_help = "Examples:\n  clonegate template export win11 win11.qcow2\n  clonegate template export win11:2 win11-2.img --format raw"
    )]
    Export {
        /// NAME or NAME:VERSION; NAME alone takes the published version
        template: String,
        #[command(flatten)]
        export: ExportFile,
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

#[derive(Debug, Args)]
pub(super) struct Import {
    /// The template
    name: String,
    /// The image: a file, - for standard input (raw), or with --by-reference the URL of a raw image
    image: String,
    /// What the image is; it is never guessed from its content
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// The datastore; the first that is online otherwise
    #[arg(long)]
    datastore: Option<String>,
    /// The image stays where it is: s3://bucket/key.raw or file:///dir/image.raw as the gateway sees it
    #[arg(long)]
    by_reference: bool,
    /// One line for people
    #[arg(long)]
    description: Option<String>,
    /// Give new clones this version at once; the first version is published anyway
    #[arg(long)]
    publish: bool,
    /// Deltas that each of its bases takes
    #[arg(long)]
    slots: Option<u32>,
    /// Neither look into it nor seal it: it can be published when it is sealed
    #[arg(long, conflicts_with_all = ["publish", "force"])]
    draft: bool,
    /// Seal it whatever is found in it: a machine id, host keys, what cloud-init left
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    dry_run: DryRun,
}

async fn import(request: Import, session: &Session) -> Result<(), Failure> {
    let client = session.client()?;
    // Before gigabytes are sent in vain.
    Name::new(request.name.as_str())?;
    let path = format!("templates/{}/versions", session.segment(&request.name));
    let publish = request.publish.then_some(true);
    if request.by_reference {
        if request.format == Some(Format::Qcow2) {
            return Err(clonegate_core::Error::unsupported("not-raw", "only raw images can be used by reference")
                .on(request.image)
                .hint("convert it: qemu-img convert -O raw, or import it without --by-reference")
                .into());
        }
        let body = serde_json::json!({
            "by_reference": request.image,
            "datastore": request.datastore,
            "description": request.description,
            "publish": publish,
            "slots": request.slots,
            "draft": request.draft,
            "force": request.force,
        });
        if !request.dry_run.tried(&path, &body, "imported", session).await? {
            show(&client.post(&path, &[], &body).await?, session);
        }
        return Ok(());
    }
    let file = PathBuf::from(&request.image);
    let format = request.format.map_or_else(|| Format::of_ending(&file), Ok)?;
    let input = image::open(&file, format)?;
    let mut query: Vec<(&str, String)> = request.dry_run.query();
    query.extend(request.datastore.map(|v| ("datastore", v)));
    query.extend(request.description.map(|v| ("description", v)));
    query.extend(file.file_name().map(|v| ("origin", v.to_string_lossy().into_owned())));
    query.extend(publish.map(|v| ("publish", v.to_string())));
    query.extend(request.slots.map(|v| ("slots", v.to_string())));
    query.extend([("draft", request.draft.to_string()), ("force", request.force.to_string())]);
    if request.dry_run.dry_run {
        // The image is not read, so its size on this disk is all that is known.
        let mut would: Touched = client.upload(&path, &query, reqwest::Body::from("")).await?;
        would.bytes = image::bytes_on_disk(&file);
        touched("imported", &would, session);
        return Ok(());
    }
    let bar = Bar::new();
    let (_, stream) = import::upload(input, bar.clone()).await?;
    // When the image cannot be read on, that is what the user is to hear, not that the upload broke off.
    let cause = std::sync::Arc::new(parking_lot::Mutex::new(None));
    let note = std::sync::Arc::clone(&cause);
    let stream =
        futures::StreamExt::map(stream, move |part| part.inspect_err(|error| *note.lock() = Some(error.clone())));
    let sent = client.upload(&path, &query, reqwest::Body::wrap_stream(stream)).await;
    bar.finish();
    let imported: TemplateView = match (sent, cause.lock().take()) {
        (Err(_), Some(error)) => return Err(error.into()),
        (sent, _) => sent?,
    };
    show(&imported, session);
    Ok(())
}

pub(super) async fn run(verb: Verb, session: &Session) -> Result<(), Failure> {
    let client = session.client()?;
    let path = |name: &str| format!("templates/{}", session.segment(name));
    match verb {
        Verb::Import(request) => return import(request, session).await,
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
        Verb::Publish { template, dry_run } => {
            let (name, version) = super::template_and_version(&template)?;
            let (path, body) = (format!("{}/publish", path(&name)), serde_json::json!({ "version": version }));
            if !dry_run.tried(&path, &body, "published", session).await? {
                show(&client.post(&path, &[], &body).await?, session);
            }
        }
        Verb::Seal { template, force, dry_run } => {
            let (name, version) = super::template_and_version(&template)?;
            let body = serde_json::json!({ "version": version, "force": force });
            let path = format!("{}/seal", path(&name));
            if !dry_run.tried(&path, &body, "sealed", session).await? {
                show(&client.post(&path, &[], &body).await?, session);
            }
        }
        Verb::Retain { name, keep, dry_run } => {
            let body = serde_json::json!({ "keep": keep });
            let done: Touched = client.post(&format!("{}/retention", path(&name)), &dry_run.query(), &body).await?;
            if done.names.is_empty() && session.form == Form::Table {
                output::line("no version goes");
            } else {
                touched("deleted", &done, session);
            }
        }
        Verb::Rollback { name, dry_run } => {
            let (path, body) = (format!("{}/rollback", path(&name)), serde_json::json!({}));
            if !dry_run.tried(&path, &body, "published", session).await? {
                show(&client.post(&path, &[], &body).await?, session);
            }
        }
        Verb::Identity(verb) => super::identity::of_template(verb, session).await?,
        Verb::Export { template, export } => {
            let (name, version) = super::template_and_version(&template)?;
            let what = match version {
                None => path(&name),
                Some(version) => base_of(&client, &name, version, session).await?,
            };
            return super::export::run(&what, &template, export, session).await;
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

/// A base of this version, by whose bytes it is read.
async fn base_of(client: &Client, name: &str, version: u32, session: &Session) -> Result<String, Failure> {
    let bases: Vec<BaseView> = client.list("bases").await?;
    let base = bases.into_iter().find(|base| base.template == name && base.version == version);
    let base = base.ok_or_else(|| {
        clonegate_core::Error::not_found("no-base", "there is no base of this version")
            .on(format!("{name}:{version}"))
            .hint("publish the version and export the template, or make a clone of it")
    })?;
    Ok(format!("bases/{}", session.segment(&base.id)))
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
        if version.state == "draft" {
            output::line(&format!(
                "version {0} is a draft: clonegate template seal {1}:{0}, then publish it",
                version.number, template.name
            ));
        }
    }
}
