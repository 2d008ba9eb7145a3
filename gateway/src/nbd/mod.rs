//! The NBD server: handshake and transmission over sockets.
