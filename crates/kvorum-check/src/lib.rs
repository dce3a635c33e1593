//! kvorum-check
