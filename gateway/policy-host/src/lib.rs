//! Runs clonegate policy components in a sandbox.
