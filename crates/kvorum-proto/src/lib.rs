//! kvorum-proto
