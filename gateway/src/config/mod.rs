//! The whole configuration as one validated value.
