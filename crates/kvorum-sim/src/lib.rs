//! kvorum-sim
