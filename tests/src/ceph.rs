//! A real S3 service on loopback: one Ceph (monitor, OSD in memory, RADOS gateway) for each test binary that asks.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use clonegate::store::{Secret, StoreConfig, tls};
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::signer::Signer;

use crate::tree;

/// The programs that a test must need (see [`crate::harness`]) to use this.
pub const NEEDS: &[&str] = &["radosgw", "ceph-mon", "ceph-osd", "ceph", "python3"];

const ACCESS_KEY: &str = "clonegate";
const SECRET_KEY: &str = "clonegate-secret";
/// A first start of Ceph on a loaded machine of two cores.
const START_TIMEOUT: Duration = Duration::from_secs(180);

/// The running service. It ends with the process that started it.
#[derive(Debug)]
pub struct Ceph {
    endpoint: String,
    /// The script stays as long as this is open.
    _alive: ChildStdin,
    _script: Child,
    _directory: tempfile::TempDir,
}

impl Ceph {
    /// The service of this process; the first call starts it, which takes about ten seconds.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start() -> &'static Self {
        static CEPH: OnceLock<Ceph> = OnceLock::new();
        CEPH.get_or_init(Self::launch)
    }

    fn launch() -> Self {
        let directory = tempfile::Builder::new().prefix("clonegate-ceph-").tempdir().expect("a temporary directory");
        let mut script = Command::new("bash")
            .arg(tree::root().join("tests/rig/start-radosgw.sh"))
            .arg(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("bash runs");
        let alive = script.stdin.take().expect("it is piped");
        let output = BufReader::new(script.stdout.take().expect("it is piped"));
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some(url) = line.strip_prefix("ready ") {
                    drop(tell.send(url.to_owned()));
                }
            }
        });
        let endpoint = told.recv_timeout(START_TIMEOUT).expect("Ceph starts; see what it printed");
        Self { endpoint, _alive: alive, _script: script, _directory: directory }
    }

    /// Where S3 is served: `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Settings for a store in a bucket of its own, which is made.
    ///
    /// # Panics
    /// When the bucket cannot be made.
    pub async fn bucket(&self) -> StoreConfig {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let bucket = format!("clonegate-test-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        tls::install_provider();
        let signer = AmazonS3Builder::new()
            .with_endpoint(&self.endpoint)
            .with_allow_http(true)
            .with_bucket_name(&bucket)
            .with_access_key_id(ACCESS_KEY)
            .with_secret_access_key(SECRET_KEY)
            .build()
            .expect("the settings fit");
        let put = reqwest::Method::PUT;
        let url =
            signer.signed_url(put.clone(), &Path::default(), Duration::from_secs(60)).await.expect("it is signed");
        let answer = reqwest::Client::new().request(put, url).send().await.expect("Ceph answers");
        assert!(answer.status().is_success(), "bucket {bucket}: {answer:?}");
        self.config(&bucket)
    }

    /// Settings for a store in `bucket`, whether it is there or not.
    pub fn config(&self, bucket: &str) -> StoreConfig {
        StoreConfig {
            endpoint: Some(self.endpoint.clone()),
            region: Some("us-east-1".to_owned()),
            access_key_id: Some(ACCESS_KEY.to_owned()),
            secret_access_key: Some(Secret::new(SECRET_KEY)),
            ..StoreConfig::new(format!("s3://{bucket}/vdi"))
        }
    }

    /// The lines that a configuration file or the environment of the program needs to reach it: name and value.
    pub fn environment(&self) -> [(&'static str, String); 4] {
        [
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ENDPOINT_URL", self.endpoint.clone()),
        ]
    }
}
