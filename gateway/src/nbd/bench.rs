//! A load generator for any NBD server.
