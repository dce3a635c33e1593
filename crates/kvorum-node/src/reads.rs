//! The read gate: a linearizable read waits for a read index, then until that index is applied.
//!
//! All reads that arrive together share one question to the core, and the core shares one confirmation among
//! all questions. A question that was dropped, or lost on its way to the leader, is asked again under a fresh
//! token until the callers' deadlines.

use std::collections::BTreeMap;

use kvorum_raft::{Index, Micros, Token};

use crate::interface::{Effect, ReadFailure, ReadRequest};
use crate::node::{Context, Node};

#[derive(Debug)]
struct Asked {
    at: Micros,
    reads: Vec<ReadRequest>,
}

/// The reads between their callers and a view of the state.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    /// Nobody to ask yet, or asked in vain.
    held: Vec<ReadRequest>,
    /// Asked, by token.
    asked: BTreeMap<Token, Asked>,
    /// Confirmed; waiting until this index is applied.
    confirmed: BTreeMap<Index, Vec<u64>>,
}

impl Node {
    /// Local callers' reads.
    pub(crate) fn read(&mut self, context: &mut Context<'_>, mut reads: Vec<ReadRequest>) {
        let room = self
            .options
            .held_requests_max
            .saturating_sub(self.reads.held.len());
        let excess = reads.split_off(room.min(reads.len()));
        context.fail_reads(
            excess.iter().map(|read| read.id).collect(),
            ReadFailure::Overloaded,
        );
        self.reads.held.append(&mut reads);
        self.ask(context);
    }

    /// Asks the core for everything that is held, if there is a leader to confirm it.
    pub(crate) fn ask(&mut self, context: &mut Context<'_>) {
        if self.reads.held.is_empty() || self.raft.leader() == 0 {
            return;
        }
        let token = self.next_token();
        let reads = std::mem::take(&mut self.reads.held);
        self.reads.asked.insert(
            token,
            Asked {
                at: context.now,
                reads,
            },
        );
        self.step_raft(context, kvorum_raft::Input::Read { token });
    }

    /// The core confirmed a question.
    pub(crate) fn read_confirmed(&mut self, context: &mut Context<'_>, token: Token, index: Index) {
        let Some(asked) = self.reads.asked.remove(&token) else {
            return;
        };
        let ids = asked.reads.iter().map(|read| read.id);
        if index <= self.applied {
            context.out.push(Effect::ReadsReady(ids.collect()));
        } else {
            self.reads.confirmed.entry(index).or_default().extend(ids);
        }
    }

    /// The core dropped a question; it is asked again at the next tick or when a leader is known.
    pub(crate) fn read_dropped(&mut self, token: Token) {
        if let Some(asked) = self.reads.asked.remove(&token) {
            self.reads.held.extend(asked.reads);
        }
    }

    /// Reads confirmed at or below `applied` may be served.
    pub(crate) fn settle_reads(&mut self, context: &mut Context<'_>) {
        let waiting = self.reads.confirmed.split_off(&(self.applied + 1));
        for ids in std::mem::replace(&mut self.reads.confirmed, waiting).into_values() {
            context.out.push(Effect::ReadsReady(ids));
        }
    }

    /// Takes back questions that got no answer, fails reads whose callers stopped waiting, asks anew.
    pub(crate) fn refresh_reads(&mut self, context: &mut Context<'_>) {
        let (now, patience) = (context.now, self.options.raft.election_timeout / 2);
        for (_, asked) in self
            .reads
            .asked
            .extract_if(.., |_, asked| asked.at + patience < now)
        {
            self.reads.held.extend(asked.reads);
        }
        let late = self.reads.held.extract_if(.., |read| read.deadline <= now);
        let late = late.map(|read| read.id).collect();
        context.fail_reads(late, ReadFailure::TimedOut);
        self.ask(context);
    }

    /// How many local reads wait.
    pub(crate) fn reads_waiting(&self) -> usize {
        self.reads.held.len()
            + self
                .reads
                .asked
                .values()
                .map(|asked| asked.reads.len())
                .sum::<usize>()
            + self.reads.confirmed.values().map(Vec::len).sum::<usize>()
    }
}
