//! Streams between servers: gateways and routers of different processes.
