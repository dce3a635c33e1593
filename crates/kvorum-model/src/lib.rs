//! kvorum-model
