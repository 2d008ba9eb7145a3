//! HTTP byte ranges and preconditions as pure code (RFC 9110 §13 and §14).
