//! Turns a raw or qcow2 image, treated as hostile, into a base.
