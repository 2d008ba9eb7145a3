//! The built-in policies of clonegate as a plugin.
