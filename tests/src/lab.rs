//! Gateways inside the test, on one directory, with what tests of their verbs do all the time.

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clonegate::clock::Clock;
use clonegate::delta::DeltaSettings;
use clonegate::exports::{Attach, Attachment, Exports};
use clonegate::import::{Input, NoProgress};
use clonegate::lifecycle::advisor::BuiltIn;
use clonegate::lifecycle::views::{CloneView, CreateClones, ImportTemplate, TemplateView};
use clonegate::lifecycle::{DatastoreSettings, Gateway, GatewaySettings};
use clonegate::store::StoreConfig;
use clonegate_core::Result;
use clonegate_core::ids::{GatewayId, Name};
use clonegate_core::units::ByteRange;
use tempfile::TempDir;

/// A directory with a home and datastores, and gateways on it.
#[derive(Debug)]
pub struct Lab {
    dir: TempDir,
    datastores: Vec<String>,
    /// How long nobody follows a clean good-bye before it is a power-off.
    pub grace: Duration,
    /// How long a reset can be taken back.
    pub undo: Duration,
}

/// Images of the lab have this many bytes.
pub const SIZE: u64 = 1 << 20;

impl Lab {
    /// A lab with these datastores.
    ///
    /// # Panics
    /// When there is no temporary directory.
    pub fn new(datastores: &[&str]) -> Self {
        Self {
            dir: tempfile::tempdir().expect("a temporary directory"),
            datastores: datastores.iter().map(ToString::to_string).collect(),
            grace: Duration::from_millis(50),
            undo: DeltaSettings::default().undo_window,
        }
    }

    /// Where everything is.
    pub fn path(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    /// A gateway of this number; started again with the same number it is the same one.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn gateway(&self, number: u8) -> Arc<Gateway> {
        let dir = self.dir.path();
        let url = |part: &str| StoreConfig::new(format!("file://{}/{part}", dir.display()));
        let settings = GatewaySettings {
            home: url("home"),
            datastores: self
                .datastores
                .iter()
                .map(|name| DatastoreSettings::new(Name::new(name.as_str()).expect("a good name"), url(name)))
                .collect(),
            sources: Vec::new(),
            gateway: GatewayId::from_bytes([number; 16]),
            host: format!("host-{number}"),
            icache_bytes: 16 << 20,
            delta: DeltaSettings {
                journal: Some(dir.join(format!("journal-{number}"))),
                undo_window: self.undo,
                ..DeltaSettings::default()
            },
            idle_close: Duration::from_secs(300),
            power_off_grace: self.grace,
            slots_per_base: 128,
        };
        for _ in 0..3000 {
            match Gateway::start(settings.clone(), Arc::new(BuiltIn), Clock::system()).await {
                // One that was dropped without a stop lets go of its journal when the last of its tasks has ended.
                Err(error) if error.code() == "journal-in-use" => tokio::time::sleep(Duration::from_millis(20)).await,
                started => return started.expect("a gateway starts"),
            }
        }
        panic!("the gateway before it never ended");
    }
}

/// An image of [`SIZE`] bytes: the first sector filled with `byte`, zeroes behind it.
pub fn image(byte: u8) -> Vec<u8> {
    let mut image = vec![0; usize::try_from(SIZE).expect("it is small")];
    image[..512].fill(byte);
    image
}

/// Imports an image as the next version of a template.
///
/// # Errors
/// Those of the import.
pub async fn import(gateway: &Gateway, request: ImportTemplate, image: Vec<u8>) -> Result<TemplateView> {
    let size = Some(image.len() as u64);
    let input = Input::RawStream { reader: Box::new(Cursor::new(image)), size };
    gateway.import_template(request, input, Arc::new(NoProgress)).await
}

/// Imports [`image`] as the next version of a template.
///
/// # Panics
/// When it fails.
pub async fn version(gateway: &Gateway, name: &str, byte: u8) -> TemplateView {
    let request = ImportTemplate { name: name.to_owned(), publish: Some(true), ..ImportTemplate::default() };
    import(gateway, request, image(byte)).await.expect("an import")
}

/// An order of clones.
pub fn order(name: &str, template: &str, count: Option<u32>) -> CreateClones {
    CreateClones { name: name.to_owned(), template: template.to_owned(), count, ..CreateClones::default() }
}

/// Four bytes of an export.
///
/// # Panics
/// When they cannot be read.
pub async fn read(gateway: &Gateway, export: &str, at: u64) -> Vec<u8> {
    let device = gateway.open(export.parse().expect("a good name")).await.expect("it opens");
    device.read(ByteRange::new(at, at + 4)).await.expect("it reads").concat()
}

/// Writes and flushes.
///
/// # Panics
/// When that fails.
pub async fn write(gateway: &Gateway, export: &str, at: u64, bytes: &[u8]) {
    let device = gateway.open(export.parse().expect("a good name")).await.expect("it opens");
    let bytes = bytes::Bytes::copy_from_slice(bytes);
    device.write(at, bytes, Default::default()).await.expect("it writes");
    device.flush().await.expect("it flushes");
}

/// A machine that attaches a clone to write to it.
///
/// # Panics
/// When it may not.
pub async fn machine(gateway: &Gateway, clone: &str, address: &str) -> Box<dyn Attachment> {
    let attach = Attach { client: address.to_owned(), write: true };
    gateway.attach(clone.parse().expect("a good name"), attach).await.expect("it attaches")
}

/// What a machine writes.
///
/// # Panics
/// When it cannot.
pub async fn machine_writes(machine: &dyn Attachment, at: u64, bytes: &[u8]) {
    machine.begin_write().expect("it may write");
    let bytes = bytes::Bytes::copy_from_slice(bytes);
    machine.device().write(at, bytes, Default::default()).await.expect("it writes");
    machine.device().flush().await.expect("it flushes");
}

/// Waits until a clone is as it should become.
///
/// # Panics
/// When it does not for a minute: machines that run many tests at once are slow.
pub async fn until(gateway: &Gateway, clone: &str, is: impl Fn(&CloneView) -> bool) {
    for _ in 0..2400 {
        if is(&gateway.show_clone(clone).await.expect("it is there")) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("it did not become so: {:?}", gateway.show_clone(clone).await);
}

/// That `fsck` finds nothing, however young.
///
/// # Panics
/// With what it finds.
pub async fn check_clean(gateway: &Gateway) {
    let report = gateway.fsck(false, Some(0), false).await.expect("it is checked");
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

/// A path below the lab, for those who look at the stored objects.
pub fn below(lab: &Lab, part: &str) -> PathBuf {
    Path::new(&lab.path()).join(part)
}
