//! The NBD wire protocol as pure code: options, requests, replies; no sockets.
