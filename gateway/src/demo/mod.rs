//! A tiny bootable disk image, made in code.
