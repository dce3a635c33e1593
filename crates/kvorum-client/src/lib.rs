//! kvorum-client
