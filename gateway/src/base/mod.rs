//! Reads the chunks of a base and verifies each against its index.
