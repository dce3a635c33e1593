//! Links between members: which of them work, and what travels on them.
//!
//! Messages of the consensus core may be lost, late, repeated, reordered, and may reach a process that was started
//! after they were sent: the core must stand all of that. Forwarded writes and snapshots travel on connections, as
//! in the server: what they carry arrives once or not at all, and not at another process. Of a forward that does not
//! arrive, its sender's replica sometimes hears so, as in the server when there was no connection to hand it to.

use std::collections::BTreeMap;

use bytes::Bytes;
use kvorum_raft::{MemberId, Micros, Token};

/// What travels.
#[derive(Clone, Debug)]
pub(crate) enum Frame {
    /// An encoded peer message of the core.
    Core(Bytes),
    /// An encoded peer message that is not the core's.
    Call(Bytes),
    /// Such a one with forwarded writes, by the sender's number.
    Forward {
        id: Token,
        bytes: Bytes,
    },
    /// A piece of a snapshot's transfer; `last` piece of its frame or not.
    Piece {
        stream: u64,
        number: u64,
        bytes: Bytes,
        last: bool,
    },
    /// The encoded core message that ends a transfer.
    End {
        stream: u64,
        number: u64,
        message: Bytes,
    },
    /// The receiver's word on a piece: go on with this number, or give up.
    Received {
        stream: u64,
        next: u64,
    },
    Declined {
        stream: u64,
    },
}

impl Frame {
    /// Whether the receiver stands seeing it twice, and in another life.
    pub(crate) fn may_be_repeated(&self) -> bool {
        matches!(self, Frame::Core(_))
    }
}

/// The state of the links.
#[derive(Debug, Default)]
pub(crate) struct Network {
    /// How many partitions block a link now, by (from, to).
    blocked: BTreeMap<(MemberId, MemberId), u32>,
    pub bad_weather: bool,
    /// When the last frame of a link arrives, where order is kept.
    last_arrival: BTreeMap<(MemberId, MemberId), Micros>,
    last_notice: BTreeMap<(MemberId, MemberId), Micros>,
    /// The last forward on each link.
    forwards: BTreeMap<(MemberId, MemberId), Token>,
    /// The number of each member's present process.
    lives: BTreeMap<MemberId, u64>,
}

/// Between two notices of a broken connection to the same peer.
const NOTICE_INTERVAL: Micros = 300_000;

impl Network {
    pub(crate) fn is_blocked(&self, from: MemberId, to: MemberId) -> bool {
        self.blocked.contains_key(&(from, to))
    }

    pub(crate) fn block(&mut self, links: &[(MemberId, MemberId)]) {
        for &link in links {
            *self.blocked.entry(link).or_default() += 1;
        }
    }

    pub(crate) fn unblock(&mut self, links: &[(MemberId, MemberId)]) {
        for link in links {
            if let Some(count) = self.blocked.get_mut(link) {
                *count -= 1;
                if *count == 0 {
                    self.blocked.remove(link);
                }
            }
        }
    }

    pub(crate) fn unblock_all(&mut self) {
        self.blocked.clear();
    }

    pub(crate) fn life(&self, member: MemberId) -> u64 {
        self.lives.get(&member).copied().unwrap_or(0)
    }

    pub(crate) fn set_life(&mut self, member: MemberId, life: u64) {
        self.lives.insert(member, life);
    }

    /// When a frame sent now may arrive without overtaking another.
    pub(crate) fn in_order(&mut self, from: MemberId, to: MemberId, at: Micros) -> Micros {
        let last = self.last_arrival.entry((from, to)).or_default();
        *last = at.max(*last);
        *last
    }

    /// A forward is on its way.
    pub(crate) fn note_forward(&mut self, from: MemberId, to: MemberId, id: Token) {
        self.forwards.insert((from, to), id);
    }

    /// The number of the last forward that was on its way, or 0.
    pub(crate) fn last_forward(&self, from: MemberId, to: MemberId) -> Token {
        self.forwards.get(&(from, to)).copied().unwrap_or(0)
    }

    pub(crate) fn may_notice(&mut self, from: MemberId, to: MemberId, now: Micros) -> bool {
        let last = self.last_notice.entry((from, to)).or_default();
        let due = now >= *last + NOTICE_INTERVAL;
        if due {
            *last = now;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_partitions_end_one_by_one() {
        let mut net = Network::default();
        net.block(&[(1, 2), (2, 1)]);
        net.block(&[(1, 2)]);
        net.unblock(&[(1, 2), (2, 1)]);
        assert!(net.is_blocked(1, 2) && !net.is_blocked(2, 1));
        net.unblock(&[(1, 2)]);
        assert!(!net.is_blocked(1, 2));
    }

    #[test]
    fn frames_of_a_link_do_not_overtake() {
        let mut net = Network::default();
        assert_eq!(
            [
                net.in_order(1, 2, 50),
                net.in_order(1, 2, 40),
                net.in_order(2, 1, 40)
            ],
            [50, 50, 40]
        );
    }
}
