//! kvorum-wal
