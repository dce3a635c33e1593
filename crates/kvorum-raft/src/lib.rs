//! kvorum-raft
