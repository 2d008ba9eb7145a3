//! The one TLS provider of the process.

use std::sync::Once;

/// Makes `ring` the provider of every TLS connection of the process; needed before the first HTTP client is built, since
/// none is compiled in as a default. May be called any number of times, from anywhere.
pub fn install_provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // An error means that somebody installed a provider before, which is as good.
        drop(rustls::crypto::ring::default_provider().install_default());
    });
}
