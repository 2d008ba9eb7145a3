//! What happens to templates, bases and clones, and in which order in the store.
