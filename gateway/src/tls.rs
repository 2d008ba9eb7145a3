//! TLS of the servers: certificates from PEM files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clonegate_core::{Error, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};
use tokio_rustls::TlsAcceptor;

/// Encryption by TLS 1.2 or 1.3 with certificates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// PEM file of the server's certificate and those between it and the root.
    pub certificate: PathBuf,
    /// PEM file of the private key.
    pub key: PathBuf,
    /// PEM file of the authorities whose client certificates are accepted; when set, a client of NBD must show one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<PathBuf>,
    /// Whether plain connections of NBD are refused. Defaults to yes: a server that takes both can be talked down.
    #[serde(default = "yes")]
    pub required: bool,
}

fn yes() -> bool {
    true
}

/// Which clients are let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// All.
    Any,
    /// Those with a certificate, where `client_ca` says whose.
    Certified,
}

/// Reads the certificates and keys of `settings`. `protocol` is what is offered by ALPN; empty for nothing.
///
/// # Errors
/// `Invalid` with code `bad-certificate` that names the file.
pub fn acceptor(settings: &Tls, clients: Clients, protocol: &[u8]) -> Result<TlsAcceptor> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::internal("tls-setup", "the TLS library refuses its own defaults").because(error))?;
    let builder = match settings.client_ca.as_ref().filter(|_| clients == Clients::Certified) {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| bad(path, "it is no certificate authority").because(error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| bad(path, "no client can be checked with it").because(error))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let key = PrivateKeyDer::from_pem_file(&settings.key)
        .map_err(|error| bad(&settings.key, "it has no private key in PEM").because(error))?;
    let mut config = builder
        .with_single_cert(certificates(&settings.certificate)?, key)
        .map_err(|error| bad(&settings.certificate, "certificate and key do not go together").because(error))?;
    if !protocol.is_empty() {
        config.alpn_protocols = vec![protocol.to_vec()];
    }
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>);
    match read {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(bad(path, "it has no certificate in PEM")),
        Err(error) => Err(bad(path, "it cannot be read as PEM").because(error)),
    }
}

fn bad(path: &Path, message: &str) -> Error {
    Error::invalid("bad-certificate", message)
        .on(path.display().to_string())
        .hint("give PEM files: the certificate chain, its private key, and the authority of the clients")
}
