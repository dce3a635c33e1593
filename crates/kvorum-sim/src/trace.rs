//! What happened in a world, as bytes: one line an event, hashed as it comes, kept only on request.
//!
//! Two runs of one seed have the same trace, byte for byte; a person reads it when a seed fails.

use std::fmt::{Arguments, Write};

use kvorum_raft::Micros;
use xxhash_rust::xxh3::Xxh3;

/// Collects the lines of one world.
pub(crate) struct Trace {
    hash: Xxh3,
    lines: u64,
    line: String,
    kept: Option<String>,
}

impl Trace {
    pub(crate) fn new(keep: bool) -> Trace {
        Trace {
            hash: Xxh3::new(),
            lines: 0,
            line: String::new(),
            kept: keep.then(String::new),
        }
    }

    /// Adds a line.
    pub(crate) fn note(&mut self, now: Micros, what: Arguments<'_>) {
        self.line.clear();
        writeln!(self.line, "{:>4}.{:06} {what}", now / 1_000_000, now % 1_000_000)
            .expect("writing to a string does not fail");
        self.hash.update(self.line.as_bytes());
        self.lines += 1;
        if let Some(kept) = &mut self.kept {
            kept.push_str(&self.line);
        }
    }

    /// Adds bytes that the lines only summarise.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
    }

    /// Hash of everything so far, and the number of lines.
    pub(crate) fn sum(&self) -> (u128, u64) {
        (self.hash.digest128(), self.lines)
    }

    pub(crate) fn into_text(self) -> Option<String> {
        self.kept
    }
}
