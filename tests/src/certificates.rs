//! Certificates for tests of encryption: an authority, a server, clients.

use std::sync::Arc;

use clonegate::nbd::client::Wish;
use clonegate::tls::Tls;
use clonegate_core::nbd::Style;

/// A certificate authority, a server's and a client's certificate, as PEM files.
#[derive(Debug)]
pub struct Certificates {
    dir: tempfile::TempDir,
    ca: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Default for Certificates {
    fn default() -> Self {
        Self::new()
    }
}

impl Certificates {
    /// A directory as QEMU and libnbd want it: the authority, and a client's certificate of `authority` if there is to be one.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn directory(&self, authority: Option<&Self>) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("a file");
        write("ca-cert.pem", &self.ca.pem());
        if let Some(authority) = authority {
            let (certificate, key) = authority.sign("machine-1");
            write("client-cert.pem", &certificate);
            write("client-key.pem", &key);
        }
        dir
    }

    /// A new authority, with a server's certificate for the loopback.
    ///
    /// # Panics
    /// When they cannot be made or written.
    pub fn new() -> Self {
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).expect("rustls and rcgen take it");
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        // OpenSSL takes a certificate whose issuer has its own name for one that signed itself.
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "clonegate test authority");
        let ca = rcgen::CertifiedIssuer::self_signed(
            parameters,
            rcgen::KeyPair::generate().expect("rustls and rcgen take it"),
        )
        .expect("rustls and rcgen take it");
        let made = Self { dir: tempfile::tempdir().expect("rustls and rcgen take it"), ca };
        std::fs::write(made.path("ca.pem"), made.ca.pem()).expect("a file");
        let (certificate, key) = made.sign("127.0.0.1");
        std::fs::write(made.path("server.pem"), certificate).expect("rustls and rcgen take it");
        std::fs::write(made.path("server.key"), key).expect("rustls and rcgen take it");
        made
    }

    /// The path of a file: `ca.pem`, `server.pem`, `server.key`.
    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// A certificate and its key for a name or an address, as PEM.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn sign(&self, name: &str) -> (String, String) {
        let key = rcgen::KeyPair::generate().expect("rustls and rcgen take it");
        let parameters = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("rustls and rcgen take it");
        (parameters.signed_by(&key, &self.ca).expect("rustls and rcgen take it").pem(), key.serialize_pem())
    }

    /// The server's settings: whether clients need a certificate, and whether plain ones are refused.
    pub fn settings(&self, clients: bool, required: bool) -> Tls {
        Tls {
            certificate: self.path("server.pem"),
            key: self.path("server.key"),
            client_ca: clients.then(|| self.path("ca.pem")),
            required,
        }
    }

    /// What our own client is to ask for.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn client(&self, with_certificate: bool) -> Wish {
        use rustls::pki_types::pem::PemObject;
        use rustls::pki_types::{CertificateDer, PrivateKeyDer};
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.der().clone()).expect("rustls and rcgen take it");
        let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("rustls and rcgen take it")
            .with_root_certificates(roots);
        let config = if with_certificate {
            let (certificate, key) = self.sign("machine-1");
            let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("rustls and rcgen take it")];
            builder
                .with_client_auth_cert(
                    chain,
                    PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("rustls and rcgen take it"),
                )
                .expect("rustls and rcgen take it")
        } else {
            builder.with_no_client_auth()
        };
        Wish { style: Style::Extended, contexts: vec!["base:allocation".to_owned()], tls: Some(Arc::new(config)) }
    }
}
