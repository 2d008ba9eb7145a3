//! `clonegate up`: the main job in one command.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use clonegate_core::ids::Name;
use clonegate_core::{Error, ErrorKind, Result};

use super::failure::Failure;
use super::image::{self, Bar, Format};
use super::output;
use super::running::{self, Running};
use crate::config::{Config, Datastore};
use crate::import::Input;
use crate::lifecycle::Gateway;
use crate::lifecycle::views::{CloneView, CreateClones, ImportTemplate, ListQuery};
use crate::store::StoreConfig;

/// Clones that are shown at the start.
const SHOWN: usize = 5;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  clonegate up\n  clonegate up debian.qcow2 --clones 10\n  clonegate up disk.img --data /srv/clonegate --listen 0.0.0.0:8080"
)]
pub(super) struct Up {
    /// The disk image; without one, a tiny bootable demo
    image: Option<PathBuf>,
    /// Its format, when the name does not end in .raw, .img, .iso or .qcow2
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Where everything is kept; started again on it, clonegate finds its clones
    #[arg(long, default_value = "./clonegate-data")]
    data: PathBuf,
    /// Address for HTTP [default: 127.0.0.1:8080]
    #[arg(long)]
    listen: Option<String>,
    /// Address for NBD; empty for none [default: 127.0.0.1:10809]
    #[arg(long)]
    nbd: Option<String>,
    /// Clones that there should be
    #[arg(long, default_value_t = 2)]
    clones: u32,
    /// Name of the template; otherwise made from the name of the image
    #[arg(long)]
    template: Option<String>,
    /// Bytes of memory for the iCache [default: 1GiB]
    #[arg(long)]
    icache: Option<bytesize::ByteSize>,
    /// Directory or bucket whose raw images may be templates by reference; may be given again
    #[arg(long = "source", value_name = "URL")]
    sources: Vec<String>,
}

pub(super) async fn run(up: Up) -> Result<(), Failure> {
    let wanted = wanted(&up)?;
    let data = prepare_directory(&up.data)?;
    // Held until the process ends, so that a second `up` on the same data is told.
    let _lock = lock(&data)?;
    let prepared = running::prepare(&config(&up, &data)?).await?;
    let template = match wanted {
        Some((name, input)) => {
            provide(&prepared.gateway, &name, input).await?;
            name
        }
        None => provide_demo(&prepared.gateway, up.template.as_deref()).await?,
    };
    make_clones(&prepared.gateway, &template, up.clones).await?;
    let (clones, others) = clones_of(&prepared.gateway, &template).await?;
    let running = prepared.serve().await?;
    greet(&running, &clones, others, &data);
    running.until_stopped().await?;
    output::line("stopped; the data stays");
    Ok(())
}

struct Image {
    path: PathBuf,
    format: Format,
    input: Input,
}

/// The image of the command line and the name of its template; checked before anything is made.
fn wanted(up: &Up) -> Result<Option<(Name, Image)>> {
    let Some(path) = &up.image else { return Ok(None) };
    let format = up.format.map_or_else(|| Format::of_ending(path), Ok)?;
    let input = image::open(path, format)?;
    let name = match &up.template {
        Some(name) => Name::new(name.as_str())?,
        None => name_of(path)?,
    };
    Ok(Some((name, Image { path: path.clone(), format, input })))
}

/// A name from a file name: lower case, other characters as `-`.
fn name_of(path: &Path) -> Result<Name> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
    let kept = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    let text: String = stem.chars().map(kept).take(40).collect();
    let name = text.trim_matches(['-', '.']);
    Name::new(name).map_err(|_| {
        Error::invalid("bad-name", "the name of the image makes no name for a template")
            .on(path.display().to_string())
            .hint("give one: --template NAME")
    })
}

fn prepare_directory(data: &Path) -> Result<PathBuf> {
    let failed = |e: std::io::Error| {
        Error::unavailable("no-data-directory", "the data directory cannot be made")
            .on(data.display().to_string())
            .because(e)
            .hint("choose another with --data DIR")
    };
    std::fs::create_dir_all(data).map_err(failed)?;
    data.canonicalize().map_err(failed)
}

fn lock(data: &Path) -> Result<std::fs::File> {
    let path = data.join("lock");
    let failed = |e: std::io::Error| {
        Error::unavailable("no-data-directory", "the data directory cannot be written")
            .on(data.display().to_string())
            .because(e)
    };
    let file = std::fs::File::options().create(true).append(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(Error::conflict("data-in-use", "another clonegate runs on this data directory")
                .on(data.display().to_string())
                .hint("end it first, or choose another directory with --data DIR"))
        }
        Err(std::fs::TryLockError::Error(e)) => Err(failed(e)),
    }
}

fn config(up: &Up, data: &Path) -> Result<Config> {
    let url = |part: &str| {
        url::Url::from_directory_path(data.join(part))
            .map(|url| url.to_string().trim_end_matches('/').to_owned())
            .map_err(|()| Error::invalid("bad-data-directory", "its path makes no URL").on(data.display().to_string()))
    };
    // What has no flag of its own is said by the environment: CLONEGATE_POLICY_…, CLONEGATE_BOOT_…, CLONEGATE_LISTEN_NBD_UNIX, ….
    let mut config = crate::config::load(None)?;
    config.home = crate::config::Home(StoreConfig::new(url("home")?));
    config.datastore = vec![Datastore::new("local", url("store")?)];
    config.journal.path = data.join("journal");
    if !up.sources.is_empty() {
        config.sources.clone_from(&up.sources);
    }
    if let Some(listen) = &up.listen {
        config.listen.http.clone_from(listen);
    }
    if let Some(nbd) = &up.nbd {
        config.listen.nbd.clone_from(nbd);
    }
    if let Some(icache) = up.icache {
        config.icache.memory = icache;
    }
    Ok(config)
}

/// Imports the image, unless the template is there already.
async fn provide(gateway: &Arc<Gateway>, name: &Name, image: Image) -> Result<()> {
    match gateway.show_template(name.as_str()).await {
        Ok(template) if template.published.is_some() => {
            output::line(&format!("template {name} is there: {} is not imported again", image.path.display()));
            return Ok(());
        }
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    output::line(&format!("importing {} as {} into template {name}", image.path.display(), image.format.word()));
    let request = ImportTemplate {
        name: name.to_string(),
        origin: image.path.file_name().map(|n| n.to_string_lossy().into_owned()),
        publish: Some(true),
        force: true,
        ..ImportTemplate::default()
    };
    import(gateway, request, image.input).await
}

async fn import(gateway: &Arc<Gateway>, request: ImportTemplate, input: Input) -> Result<()> {
    let bar = Bar::new();
    let imported = gateway.import_template(request, input, Arc::new(bar.clone())).await;
    bar.finish();
    if let Some(version) = imported?.versions.last() {
        for finding in &version.findings {
            output::line(&format!("warning: {finding}"));
        }
        output::line(&format!(
            "imported {}: {} not zero, {} stored",
            output::size(version.size),
            output::size(version.used_bytes),
            output::size(version.stored_bytes)
        ));
    }
    Ok(())
}

/// Without an image: the template that was asked for, or any that is published, or else the demo under a name that is free.
async fn provide_demo(gateway: &Arc<Gateway>, name: Option<&str>) -> Result<Name> {
    let name = match name {
        Some(name) => Name::new(name)?,
        None => match any_published(gateway).await? {
            Some(name) => return Ok(name),
            None => Name::new("demo")?,
        },
    };
    match gateway.show_template(name.as_str()).await {
        Ok(template) if template.published.is_some() => return Ok(name),
        Ok(_) => {
            return Err(Error::conflict("not-published", "no version of it is published, and no image was given")
                .on(name.as_str())
                .hint(format!(
                    "give an image, or publish it: start `clonegate up --template ANOTHER`, then `clonegate template publish {name}`"
                )));
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    output::line(&format!("no image given: template {name} is a tiny bootable demo"));
    let image = crate::demo::image();
    let size = Some(image.len() as u64);
    let input = Input::RawStream { reader: Box::new(std::io::Cursor::new(image)), size };
    let request = ImportTemplate {
        name: name.to_string(),
        origin: Some("demo".to_owned()),
        description: Some("boots and proves that every byte arrived".to_owned()),
        publish: Some(true),
        force: true,
        ..ImportTemplate::default()
    };
    import(gateway, request, input).await?;
    Ok(name)
}

/// The first template by name that has a published version.
async fn any_published(gateway: &Arc<Gateway>) -> Result<Option<Name>> {
    let mut query = ListQuery::default();
    loop {
        let page = gateway.list_templates(query.clone()).await?;
        if let Some(template) = page.items.iter().find(|template| template.published.is_some()) {
            return Name::new(template.name.as_str()).map(Some);
        }
        match page.next {
            None => return Ok(None),
            next => query.cursor = next,
        }
    }
}

/// The first clones of a template by name, as many as are shown, and how many others it has.
async fn clones_of(gateway: &Arc<Gateway>, template: &Name) -> Result<(Vec<CloneView>, usize)> {
    let (mut shown, mut others) = (Vec::new(), 0);
    let mut query = ListQuery { limit: Some(10_000), cursor: None };
    loop {
        let page = gateway.list_clones(query.clone()).await?;
        let mut of_it: Vec<CloneView> = page.items.into_iter().filter(|c| c.template == template.as_str()).collect();
        let rest = of_it.split_off(of_it.len().min(SHOWN - shown.len()));
        shown.append(&mut of_it);
        others += rest.len();
        match page.next {
            None => return Ok((shown, others)),
            next => query.cursor = next,
        }
    }
}

/// Makes as many clones as are missing, named after the template.
async fn make_clones(gateway: &Arc<Gateway>, template: &Name, wanted: u32) -> Result<()> {
    let mut missing = Vec::new();
    for number in 1..=wanted {
        let name = format!("{template}-{number:03}");
        match gateway.show_clone(name.clone()).await {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => missing.push(number),
            Err(error) => return Err(error),
        }
    }
    // Runs of numbers without a gap are one order each.
    let mut at = 0;
    while let Some(first) = missing.get(at).copied() {
        let run = missing[at..].iter().zip(first..).take_while(|(number, expected)| *number == expected).count();
        let request = CreateClones {
            name: format!("{template}-{{nnn}}"),
            template: template.to_string(),
            first: Some(first),
            count: u32::try_from(run).ok(),
            ..CreateClones::default()
        };
        gateway.create_clones(request, false).await?;
        at += run;
    }
    Ok(())
}

/// Prints where everything is and what to try.
fn greet(running: &Running, clones: &[CloneView], others: usize, data: &Path) {
    let http = running.http();
    output::line("");
    output::line(&format!("clonegate serves http://{http} out of {}", data.display()));
    if let Some(nbd) = running.nbd() {
        output::line(&format!("                and nbd://{nbd}"));
    }
    for clone in clones {
        output::line(&format!("  {}  {}  http://{http}{}", clone.name, output::size(clone.size), clone.disk));
    }
    if others > 0 {
        output::line(&format!("  … and {others} more: `{} clone list{}` shows all", program(), server_argument(http)));
    }
    let Some(clone) = clones.first() else { return };
    let disk = format!("http://{http}{}", clone.disk);
    output::line("\nTry:");
    output::line(&format!("  curl -s -r 0-511 {disk} | xxd | head"));
    output::line(&format!("  qemu-img info {disk}"));
    if let Some(nbd) = running.nbd() {
        output::line(&format!(
            "  qemu-system-x86_64 -nographic -drive file=nbd://{nbd}/{},format=raw,if=virtio",
            clone.name
        ));
        output::line(&format!("  nbdinfo nbd://{nbd}/{}", clone.name));
    }
    output::line(&format!("  iPXE: sanboot {disk}"));
    output::line(&format!("  {} clone list{}", program(), server_argument(http)));
    output::line(&format!("  a browser: http://{http}/"));
    output::line("\nCtrl-C ends it; the data stays.");
}

/// The program as it was called, so that what is printed can be typed: it need not be in the search path.
fn program() -> String {
    std::env::args().next().filter(|name| !name.contains(char::is_whitespace)).unwrap_or_else(|| "clonegate".to_owned())
}

fn server_argument(http: std::net::SocketAddr) -> String {
    if http.port() == 8080 && http.ip().is_loopback() { String::new() } else { format!(" --server http://{http}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_names_its_template() {
        for (path, name) in [("a/Win11 23H2.qcow2", "win11-23h2"), ("debian.raw", "debian"), ("x_y.img", "x-y")] {
            assert_eq!(name_of(Path::new(path)).unwrap().as_str(), name);
        }
        assert_eq!(name_of(Path::new("___.img")).unwrap_err().code(), "bad-name");
    }
}
