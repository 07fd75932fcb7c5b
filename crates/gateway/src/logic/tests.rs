//! Behaviour of the logic, against an outside that is played by the test.

mod blocks;
mod catch_up;
mod life;
mod live;
mod memory;
mod modes;
mod outside;
mod property;
mod versions;
mod world;
