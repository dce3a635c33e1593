//! What a replica does from time to time: ask the state machine what can go, and compare digests with peers.
//!
//! Replicas that applied the same entries have the same chained digest at the same index. Each sends its own at
//! agreed indexes to all others. A member that finds a quorum of voters agreeing on another digest than its own
//! stops: it is the one that differs, and is rebuilt from the others. A difference without such a quorum is
//! reported in the status and stops nobody.

use std::collections::{BTreeMap, VecDeque};

use kvorum_raft::{Index, MemberId, Micros};

use crate::interface::Effect;
use crate::node::{Context, Node};
use crate::wire::PeerBody;

/// Digests are compared at multiples of this index.
pub(crate) const DIGEST_INTERVAL: Index = 1024;
/// How many agreed indexes back a slow member can still be compared.
const DIGESTS_KEPT: usize = 256;
/// How often the leader looks for sessions to expire and history to compact.
const HOUSEKEEPING_INTERVAL: Micros = 10_000_000;

/// Digests of this member and what the others said, and when to look after things again.
#[derive(Debug, Default)]
pub(crate) struct Keeping {
    own: VecDeque<(Index, u128)>,
    heard: BTreeMap<Index, BTreeMap<MemberId, u128>>,
    next_look: Micros,
    /// The newest index at which a member's digest differed from this one's, for the status.
    pub(crate) divergence: Option<(Index, MemberId)>,
}

impl Node {
    /// This member passed agreed indexes.
    pub(crate) fn note_digests(&mut self, context: &mut Context<'_>, digests: Vec<(Index, u128)>) {
        let peers: Vec<MemberId> = self
            .raft
            .latest_configuration()
            .members()
            .into_iter()
            .filter(|&id| id != self.id())
            .collect();
        for (index, digest) in digests {
            for &peer in &peers {
                context.send(peer, PeerBody::Digest { index, digest });
            }
            self.keeping.own.push_back((index, digest));
            if self.keeping.own.len() > DIGESTS_KEPT {
                self.keeping.own.pop_front();
            }
            self.compare_digests(context, index, digest);
        }
        if let Some(&(oldest, _)) = self.keeping.own.front() {
            self.keeping.heard = self.keeping.heard.split_off(&oldest);
        }
    }

    /// A peer passed an agreed index.
    pub(crate) fn digest_heard(
        &mut self,
        context: &mut Context<'_>,
        from: MemberId,
        index: Index,
        digest: u128,
    ) {
        let oldest = self.keeping.own.front().map_or(0, |&(oldest, _)| oldest);
        let room = self.keeping.heard.len() < 2 * DIGESTS_KEPT || self.keeping.heard.contains_key(&index);
        if index < oldest || !index.is_multiple_of(DIGEST_INTERVAL) || !room {
            return;
        }
        self.keeping.heard.entry(index).or_default().insert(from, digest);
        if let Some(&(_, own)) = self.keeping.own.iter().find(|(at, _)| *at == index) {
            self.compare_digests(context, index, own);
        }
    }

    fn compare_digests(&mut self, context: &mut Context<'_>, index: Index, own: u128) {
        let Some(heard) = self.keeping.heard.get(&index) else {
            return;
        };
        let Some((&other, &theirs)) = heard.iter().find(|(_, digest)| **digest != own) else {
            return;
        };
        self.keeping.divergence = Some((index, other));
        let against = |id: MemberId| heard.get(&id) == Some(&theirs);
        if self.raft.latest_configuration().has_quorum(against) {
            context.out.push(Effect::Fatal(format!(
                "this member's state differs from its peers' at index {index} (digest {own:032x}, theirs \
                 {theirs:032x}): it stops serving; replace it with `kvorum member replace`"
            )));
        }
    }

    /// The leader asks what could be removed.
    pub(crate) fn look_after(&mut self, context: &mut Context<'_>) {
        if self.raft.is_leader() && context.now >= self.keeping.next_look {
            self.keeping.next_look = context.now + HOUSEKEEPING_INTERVAL;
            let time_ms = self.clock.time_ms(context.now);
            context.out.push(Effect::Housekeep { time_ms });
        }
    }
}
