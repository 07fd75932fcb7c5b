//! The client library: durable outbox, sync, gap repair, cursors, both formats.
