//! Routes for boot loaders: iPXE scripts by machine and by clone, and EFI programs.
//!
//! A boot loader shows its user a status number at best, so what concerns the machine's user (no clone for this machine) is a script
//! that says it on the screen; what concerns the operator (no such clone, a bad label) is a problem.

mod efi;
mod machine;
mod script;
mod settings;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequestParts, Path, State};
use axum::response::Response;
use clonegate_core::{Error, ErrorKind, Result};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue};
use http::request::Parts;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::control::answer::{Query, Refusal};
use super::service::Encrypted;
use crate::clock::Clock;
use crate::exports::{ExportName, Exports};
use crate::files::{self, Found, Place};
use crate::lifecycle::Gateway;
use crate::lifecycle::boot_labels::{self, INITRD, KERNEL};
use crate::lifecycle::views::{CloneView, ListQuery};
use machine::{Directory, Facts};
use script::Address;
pub use script::{blanks, unknown_blank};
pub use settings::{BootSettings, Unknown};

/// Clones in a menu.
const MENU_MAX: usize = 50;

/// What the boot routes work on.
#[derive(Debug, Clone)]
pub(super) struct Boot(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: BootSettings,
    directory: Directory,
}

impl Boot {
    pub(super) fn new(settings: BootSettings, gateway: Arc<Gateway>, clock: Clock) -> Self {
        Self(Arc::new(Inner { settings, directory: Directory::new(gateway, clock) }))
    }

    async fn script_of_clone(&self, name: &str, address: &Address) -> Result<String> {
        let clone = self.0.directory.gateway().show_clone(name).await?;
        self.script_of(&clone, address).await
    }

    /// The script of a clone as it is now; when what it is to load is not there, one that says so.
    async fn script_of(&self, clone: &CloneView, address: &Address) -> Result<String> {
        let device = self.0.directory.gateway().open(ExportName::Clone(clone.id.parse()?)).await?;
        let (version, _) = device.version();
        for label in [KERNEL, INITRD] {
            let path = boot_labels::path(&clone.labels, label)?;
            if path.is_empty() {
                continue;
            }
            let found = files::open(Arc::clone(&device), Place::Any, path).await;
            let problem = match found {
                Ok(Found::File(_)) => continue,
                Ok(Found::Directory(_)) => "it is a directory".to_owned(),
                Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error),
                Err(error) => error.message().to_owned(),
            };
            let what = format!("{} has no file {path}: {problem}.", clone.name);
            return Ok(script::refuse(&[&what, &format!("Its label {label} is wrong, or its image.")]));
        }
        script::of_clone(clone, version, address, self.0.settings.script.as_deref())
    }

    /// The script of a machine: of its clone, or what unknown machines get.
    async fn script_of_machine(&self, facts: &Facts, address: &Address) -> Result<String> {
        let Inner { settings, directory } = &*self.0;
        let found = match directory.find(facts).await {
            Ok(None) => directory.assign(facts, &settings.unknown).await,
            found => found,
        };
        match found {
            Ok(Some(clone)) => match self.script_of(&clone, address).await {
                // Deleted since the directory was read.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    let gone = format!("{} is gone: {}.", clone.name, error.message());
                    Ok(script::later(&[&gone, "Asking again in 20 seconds."], address))
                }
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    let away = format!("{} cannot be read now: {}.", clone.name, error.message());
                    Ok(script::later(&[&away, "Trying again in 20 seconds."], address))
                }
                script => script,
            },
            Err(error) if error.code() == "bad-mac" => Err(error),
            Ok(None) if settings.unknown == Unknown::Menu => {
                let query = ListQuery { limit: Some(MENU_MAX), cursor: None };
                let page = directory.gateway().list_clones(query).await?;
                let names = page.items.iter().map(|clone| clone.name.as_str());
                Ok(script::menu(names, page.next.is_some(), address))
            }
            Ok(None) => {
                let labels = facts.labels();
                let what = match labels.as_slice() {
                    [] => "It says nothing of itself: no MAC address, no UUID, no serial number.".to_owned(),
                    labels => format!("Label a clone with {} to boot it here.", labels.join(" or ")),
                };
                Ok(script::refuse(&["there is no clone for this machine.", &what]))
            }
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                let away = format!("no clone can be had now: {}.", error.message());
                Ok(script::later(&[&away, "Trying again in 20 seconds."], address))
            }
            Err(error) => {
                let code = format!("({})", error.code());
                Ok(script::refuse(&["no clone could be made for this machine:", error.message(), &code]))
            }
        }
    }
}

/// Scripts name the gateway as it was called.
impl FromRequestParts<Boot> for Address {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, boot: &Boot) -> Result<Self, Refusal> {
        let host = parts.headers.get(HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let secure = parts.extensions.get::<Encrypted>().is_some();
        Ok(Self::of_host(host, secure, boot.0.settings.nbd_port)?)
    }
}

/// All boot routes.
pub(super) fn routes() -> OpenApiRouter<Boot> {
    OpenApiRouter::new()
        .routes(routes!(chain))
        .routes(routes!(by_clone))
        .routes(routes!(by_mac))
        .routes(routes!(efi::file))
}

fn ipxe(script: String) -> Response {
    let mut response = Response::new(Body::from(script));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The chain entry for DHCP: finds the machine by MAC, UUID or serial number.
///
/// Without parameters the script makes iPXE ask again with what it knows.
#[utoipa::path(
    get, path = "/boot.ipxe", tag = "boot", params(Facts),
    responses(
        (status = 200, body = String, content_type = "text/plain", description = "An iPXE script"),
        (status = 400, body = super::problem::Problem),
    )
)]
async fn chain(State(boot): State<Boot>, address: Address, Query(facts): Query<Facts>) -> Result<Response, Refusal> {
    if facts.are_missing() {
        return Ok(ipxe(script::ask_again(&address)));
    }
    Ok(ipxe(boot.script_of_machine(&facts, &address).await?))
}

/// The script that boots a clone.
#[utoipa::path(
    get, path = "/boot/{script}", tag = "boot", params(("script" = String, Path, description = "CLONE.ipxe")),
    responses(
        (status = 200, body = String, content_type = "text/plain", description = "An iPXE script"),
        (status = 404, body = super::problem::Problem),
    )
)]
async fn by_clone(State(boot): State<Boot>, address: Address, Path(file): Path<String>) -> Result<Response, Refusal> {
    Ok(ipxe(boot.script_of_clone(stem(&file)?, &address).await?))
}

/// The script that boots the clone of the machine with this MAC address.
#[utoipa::path(
    get, path = "/boot/mac/{script}", tag = "boot", params(("script" = String, Path, description = "MAC.ipxe")),
    responses(
        (status = 200, body = String, content_type = "text/plain", description = "An iPXE script"),
        (status = 400, body = super::problem::Problem),
    )
)]
async fn by_mac(State(boot): State<Boot>, address: Address, Path(file): Path<String>) -> Result<Response, Refusal> {
    let facts = Facts { mac: Some(stem(&file)?.to_owned()), ..Facts::default() };
    if facts.mac()?.is_none() {
        return Err(Refusal(Error::invalid("bad-mac", "there is no MAC address")));
    }
    Ok(ipxe(boot.script_of_machine(&facts, &address).await?))
}

fn stem(file: &str) -> Result<&str> {
    file.strip_suffix(".ipxe").ok_or_else(|| {
        Error::not_found("no-such-script", "boot scripts end in .ipxe").on(file).hint("try /boot/CLONE.ipxe")
    })
}
