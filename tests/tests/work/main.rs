//! Long work and what is told of it: jobs, full clones, moves, exports, the audit log, events. One program, for it is linked once.

mod audit;
mod dry_runs;
mod export;
mod full_clones;
mod full_store;
mod jobs;
mod moves;
