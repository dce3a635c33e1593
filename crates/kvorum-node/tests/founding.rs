//! What the first leader of a cluster writes, and the IDs of members that are added.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use kvorum_model::{Command, Envelope, MemberRecord, Setting};
use kvorum_mvcc::{ClusterState, HISTORY_MS};
use kvorum_node::{AdminError, AdminReply, AdminRequest, ApplyReport, Effect, Input, Node, Options};
use kvorum_raft::{EntryKind, LogId, Micros, Raft, Restored, founders_entry};

use crate::common::options;

/// A member alone, and the time.
struct Alone {
    node: Node,
    now: Micros,
    /// The commands that it wrote to its log.
    written: Vec<Command>,
    /// What administrators were answered.
    answered: Vec<Result<AdminReply, AdminError>>,
    cluster: ClusterState,
}

impl Alone {
    /// It leads a new cluster.
    fn new(history_ms: u64) -> Alone {
        Alone::starts(history_ms, true, ClusterState::default())
    }

    /// It leads a cluster of which so much is known.
    fn starts(history_ms: u64, keeps_addresses: bool, cluster: ClusterState) -> Alone {
        let mut restored = Restored {
            entries: vec![founders_entry([1])],
            ..Restored::default()
        };
        restored.hard_state.term = 1;
        let record = MemberRecord {
            id: 1,
            name: "n1".into(),
            peer_addresses: vec!["told:1".into()],
            incarnation: 5,
            ..MemberRecord::default()
        };
        let options = Options {
            keeps_addresses,
            history_ms,
            ..options(record)
        };
        let raft = Raft::new(options.raft.clone(), restored, 0).unwrap();
        let node = Node::new(
            options,
            raft,
            ApplyReport::default(),
            Arc::new(cluster.clone()),
            0,
            0,
        );
        let mut alone = Alone {
            node,
            now: 0,
            written: Vec::new(),
            answered: Vec::new(),
            cluster,
        };
        for _ in 0..100 {
            alone.step(Input::Tick);
        }
        assert!(alone.node.is_leader());
        alone
    }

    /// A tenth of a second later: persists at once, and applies the members' records.
    fn step(&mut self, input: Input) {
        self.now += 100_000;
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let mut effects = Vec::new();
            self.node.step(self.now, input, &mut effects);
            for effect in effects {
                match effect {
                    Effect::Persist(persist) => {
                        let commands = persist
                            .entries
                            .iter()
                            .filter(|entry| entry.kind == EntryKind::Command);
                        let commands =
                            commands.map(|entry| Envelope::decode(entry.data.clone()).unwrap().command);
                        self.written.extend(commands);
                        inputs.push(Input::Persisted(persist.seq));
                    }
                    Effect::AdminDone { result, .. } => self.answered.push(result),
                    Effect::Apply(entries) => inputs.push(Input::Applied(self.apply(entries))),
                    _ => {}
                }
            }
        }
    }

    fn apply(&mut self, entries: Vec<kvorum_raft::Entry>) -> ApplyReport {
        let mut changed = false;
        for entry in &entries {
            let Ok(envelope) = Envelope::decode(entry.data.clone()) else {
                continue;
            };
            match envelope.command {
                Command::ClusterInit { uuid, .. } => self.cluster.uuid = uuid,
                Command::PublishMember(mut record) => {
                    if let Some(known) = self.cluster.members.get(&record.id)
                        && record.peer_addresses.is_empty()
                    {
                        record.peer_addresses.clone_from(&known.peer_addresses);
                    }
                    self.cluster.members.insert(record.id, record);
                }
                _ => continue,
            }
            changed = true;
        }
        let last = entries.last().unwrap();
        ApplyReport {
            applied: LogId {
                index: last.index,
                term: last.term,
            },
            cluster: changed.then(|| Arc::new(self.cluster.clone())),
            ..ApplyReport::default()
        }
    }

    fn settings(&self) -> Vec<&Setting> {
        self.written
            .iter()
            .filter_map(|command| match command {
                Command::ClusterSetting(setting) => Some(setting),
                _ => None,
            })
            .collect()
    }
}

/// `--history` was of no effect: no member ever told the cluster.
#[test]
fn a_cluster_begins_with_the_history_that_its_first_leader_is_told() {
    let alone = Alone::new(0);
    assert!(matches!(alone.written[0], Command::ClusterInit { uuid: 9, .. }));
    assert_eq!(alone.settings(), [&Setting::HistoryMs(0)]);
    assert!(Alone::new(HISTORY_MS).settings().is_empty(), "it is the default");
    // A later start with another one does not change what the cluster agreed on.
    let known = ClusterState {
        uuid: 8,
        ..alone.cluster.clone()
    };
    assert!(Alone::starts(5, true, known).settings().is_empty());
}

/// Where a surface has a rule for IDs, the leader takes them as they are, unless they are somebody's already.
#[test]
fn an_id_that_was_chosen_is_kept_if_it_is_free() {
    let mut alone = Alone::new(HISTORY_MS);
    for (chosen, expected) in [(0xabc, 0xabc), (0xabc, 2), (0, 3), (1, 4)] {
        let record = MemberRecord {
            id: chosen,
            peer_addresses: vec![format!("h:{expected}")],
            ..MemberRecord::default()
        };
        alone.step(Input::Admin {
            id: 1,
            request: AdminRequest::AddLearner(record),
            deadline: alone.now + 10_000_000,
        });
        for _ in 0..5 {
            alone.step(Input::Tick);
        }
        let answer = alone.answered.pop();
        assert_eq!(
            answer,
            Some(Ok(AdminReply::Changed(Some(expected)))),
            "{chosen:x}"
        );
    }
}

/// As etcd has it, a member's addresses are told at its beginning only; elsewhere each start tells where it is now.
#[test]
fn addresses_that_the_cluster_knows_may_stay() {
    let mut cluster = Alone::new(HISTORY_MS).cluster;
    let record = cluster.members.get_mut(&1).unwrap();
    assert_eq!(record.peer_addresses, ["told:1"]);
    record.peer_addresses = vec!["moved:1".into()];
    for (keeps, expected) in [(true, "moved:1"), (false, "told:1")] {
        let alone = Alone::starts(HISTORY_MS, keeps, cluster.clone());
        assert_eq!(alone.cluster.members[&1].peer_addresses, [expected]);
    }
    // Renamed, too, it says no address: where it is may stand in an entry that it has not applied yet.
    cluster.members.get_mut(&1).unwrap().name = "before".into();
    let alone = Alone::starts(HISTORY_MS, true, cluster);
    assert_eq!(alone.cluster.members[&1].name, "n1");
    let said = alone.written.iter().find_map(|command| match command {
        Command::PublishMember(record) => Some(record.peer_addresses.clone()),
        _ => None,
    });
    assert_eq!(said, Some(Vec::new()));
}
