//! kvorum-server
