//! Corners that no cluster is needed for: what a core starts from, what stops it, its limits, its clock.

#![allow(clippy::unwrap_used)]

mod faults;
mod limits;
mod one;
mod starting;
mod time;
