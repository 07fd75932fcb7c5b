//! The registry on Redis, with Sentinel or as a Redis Cluster.
