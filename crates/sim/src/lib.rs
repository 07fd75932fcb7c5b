//! Seeded simulation of a whole cluster on virtual time.
