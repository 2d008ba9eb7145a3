//! One clone as a device: delta over base.
