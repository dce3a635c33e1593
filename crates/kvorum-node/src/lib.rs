//! kvorum-node
