//! One core of three, its peers played by the test.

use bytes::Bytes;
use kvorum_raft::*;

pub const MS: Micros = 1000;

pub fn options() -> Options {
    Options {
        id: 1,
        cluster: 7,
        boot: 1,
        seed: 1,
        election_timeout: 1000 * MS,
        heartbeat_interval: 100 * MS,
        pre_vote: true,
        lease_reads: false,
        append_bytes_max: 1 << 16,
        append_entries_max: usize::MAX,
        check_quorum: 0,
        window_messages: 16,
        window_bytes: 1 << 20,
        uncommitted_bytes_max: 1 << 20,
        cache_bytes_max: 1 << 20,
        apply_bytes_max: 1 << 16,
        entry_bytes_max: 1 << 16,
        promote_lag_bytes: 0,
        retain_bytes_max: 0,
    }
}

pub fn entry(index: Index, term: Term) -> Entry {
    Entry {
        term,
        index,
        kind: EntryKind::Command,
        data: Bytes::from_static(b"data"),
    }
}

/// Founders' log of three, then entries of these terms; the current term is the last one's.
pub fn restored(terms: &[Term]) -> Restored {
    let mut entries = vec![founders_entry([1, 2, 3])];
    entries.extend(terms.iter().zip(2..).map(|(&term, index)| entry(index, term)));
    let term = entries.last().unwrap().term;
    Restored {
        hard_state: HardState { term, vote: 0 },
        entries,
        ..Restored::default()
    }
}

pub fn meta(index: Index, term: Term) -> SnapshotMeta {
    SnapshotMeta {
        last: LogId { term, index },
        configuration: Configuration::of_voters([1, 2, 3]),
    }
}

/// A core under test with its effects at hand.
pub struct One {
    pub raft: Raft,
    pub now: Micros,
}

impl One {
    pub fn start(options: Options, restored: Restored) -> One {
        One {
            raft: Raft::new(options, restored, 0).unwrap(),
            now: 0,
        }
    }

    /// A leader of three whose empty entry is committed and applied.
    pub fn leader(options: Options) -> One {
        let mut one = One::start(options, restored(&[]));
        one.now = 1000 * MS;
        let mut out = Vec::new();
        one.raft.campaign_now(one.now, &mut out);
        let campaign = out.iter().find_map(|effect| match effect {
            Effect::Send(Message {
                body: MessageBody::PreVote { campaign, .. },
                ..
            }) => Some(*campaign),
            _ => None,
        });
        let campaign = campaign.unwrap();
        one.from(
            2,
            1,
            MessageBody::PreVoteReply {
                campaign,
                asked: 2,
                granted: true,
            },
        );
        one.persist();
        one.from(
            2,
            2,
            MessageBody::VoteReply {
                campaign: campaign + 1,
                granted: true,
            },
        );
        one.persist();
        one.matched(2);
        one.step(Input::Applied(2));
        assert!(one.raft.is_leader() && one.raft.applied() == 2);
        one
    }

    pub fn step(&mut self, input: Input) -> Vec<Effect> {
        let mut out = Vec::new();
        self.raft.step(self.now, input, &mut out);
        out
    }

    pub fn from(&mut self, from: MemberId, term: Term, body: MessageBody) -> Vec<Effect> {
        self.step(Input::Message(Message {
            cluster: 7,
            from,
            to: 1,
            term,
            body,
        }))
    }

    pub fn append(&mut self, term: Term, prev: LogId, entries: Vec<Entry>) -> Vec<Effect> {
        self.from(
            2,
            term,
            MessageBody::Append {
                epoch: 1,
                round: 0,
                prev,
                commit: 0,
                entries,
            },
        )
    }

    /// Member 2 acknowledges up to `index`.
    pub fn matched(&mut self, index: Index) -> Vec<Effect> {
        let (term, result) = (self.raft.term(), AppendResult::Matched(index));
        self.from(
            2,
            term,
            MessageBody::AppendReply {
                epoch: 0,
                round: 0,
                prev: 0,
                result,
            },
        )
    }

    pub fn persist(&mut self) -> Vec<Effect> {
        let issued = self.raft.status().writes.0;
        self.step(Input::Persisted(issued))
    }

    pub fn propose(&mut self, token: Token, bytes: usize) -> Vec<Effect> {
        self.step(Input::Propose {
            token,
            commands: vec![vec![0; bytes].into()],
        })
    }
}
