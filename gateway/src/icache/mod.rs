//! Keeps base chunks in memory, loading each missing one once however many ask.
