//! Commands: the only module that prints.
