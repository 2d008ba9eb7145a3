//! SDK for clonegate policy plugins.
