//! Time and randomness, reached through one place so that a simulation replays from a seed.
