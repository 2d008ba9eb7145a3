//! TLS of the NBD server: certificates from PEM files.

use std::path::Path;
use std::sync::Arc;

use clonegate_core::{Error, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use super::settings::NbdTls;

/// Reads the certificates and keys of `settings`.
///
/// # Errors
/// `Invalid` with code `bad-certificate` that names the file.
pub(super) fn acceptor(settings: &NbdTls) -> Result<TlsAcceptor> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::internal("tls-setup", "the TLS library refuses its own defaults").because(error))?;
    let builder = match &settings.client_ca {
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
    let config = builder
        .with_single_cert(certificates(&settings.certificate)?, key)
        .map_err(|error| bad(&settings.certificate, "certificate and key do not go together").because(error))?;
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
