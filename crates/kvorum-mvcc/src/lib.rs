//! kvorum-mvcc
