//! Implementations of the core's ports, one module a technology.
