//! The directory on PostgreSQL, through PgBouncer.
