//! Model checking of the shipped consensus core with stateright: every interleaving within named bounds.
//!
//! Each suite's space closes: the checker visits every state and the test says how many there are. The larger
//! bounds are bounded searches, as far as `KVORUM_MODEL_STATES` says. `docs/testing.md` records the counts.

#![allow(clippy::unwrap_used)]

mod check;
mod disk;
mod ledger;
mod model;
mod shared;
mod shell;
mod suite;

use check::{closes, finds, holds_in_a_bounded_search};
use kvorum_raft::*;
use suite::{Budget, Clock, Network, Plant, Start, Suite, config_entry, log};

/// Two election timeouts, a crash: who leads, and by whose votes.
fn election() -> Suite {
    Suite {
        budget: Budget {
            campaigns: 2,
            crashes: 1,
            ..Budget::default()
        },
        ..Suite::new("election")
    }
}

fn election_with_pre_vote() -> Suite {
    Suite {
        name: "election, pre-vote",
        pre_vote: true,
        ..election()
    }
}

/// Logs that differ as in figure 7 of the Raft paper, shortened: 1 has most, 2 has an old tail, 3 a short log.
fn replication() -> Suite {
    let start = |term, terms: &[Term]| Start {
        hard_state: HardState { term, vote: 0 },
        entries: log(terms),
        mark: 1,
    };
    Suite {
        starts: vec![start(3, &[1, 3]), start(2, &[1, 2, 2]), start(3, &[1])],
        campaigners: vec![1, 2],
        budget: Budget {
            campaigns: 2,
            proposals: 1,
            duplicates: 1,
            ..Budget::default()
        },
        term_max: 5,
        ..Suite::new("replication, figure 7")
    }
}

/// Figure 8: an old term's entry is on a majority, another old entry elsewhere; neither counts by itself.
fn figure_8() -> Suite {
    let start = |term, terms: &[Term]| Start {
        hard_state: HardState { term, vote: 0 },
        entries: log(terms),
        mark: 1,
    };
    Suite {
        name: "replication, figure 8",
        starts: vec![start(3, &[2]), start(2, &[2]), start(3, &[3])],
        campaigners: vec![1, 3],
        budget: Budget {
            campaigns: 2,
            crashes: 1,
            ..Budget::default()
        },
        term_max: 5,
        ..Suite::new("replication, figure 8")
    }
}

/// Every write's completion is a moment of its own, and a crash may come before it.
fn disk() -> Suite {
    Suite {
        campaigners: vec![1, 2],
        budget: Budget {
            campaigns: 2,
            crashes: 1,
            ..Budget::default()
        },
        slow_disk: true,
        ..Suite::new("disk")
    }
}

fn configuration(voters: &[MemberId], outgoing: &[MemberId], learners: &[MemberId]) -> Configuration {
    Configuration {
        voters: voters.iter().copied().collect(),
        outgoing: outgoing.iter().copied().collect(),
        learners: learners.iter().copied().collect(),
        ..Configuration::default()
    }
}

/// Voters 1, 2, learner 3: it takes the place of 2 in one change.
fn membership() -> Suite {
    let start = Start {
        hard_state: HardState { term: 1, vote: 0 },
        entries: vec![config_entry(1, 1, configuration(&[1, 2], &[], &[3]))],
        mark: 1,
    };
    Suite {
        starts: vec![start; 3],
        campaigners: vec![2, 3],
        budget: Budget {
            campaigns: 2,
            crashes: 1,
            changes: 1,
            ..Budget::default()
        },
        term_max: 4,
        leader_in_office: true,
        change: vec![MemberChange::Promote(3), MemberChange::Remove(2)],
        ..Suite::new("membership, replace")
    }
}

/// {1, 2, 3} → {2, 3, 4} begun by a leader that is gone: the joint entry is on 1 and 4 only.
fn mid_joint() -> Suite {
    let old = config_entry(1, 1, configuration(&[1, 2, 3], &[], &[4]));
    let joint = config_entry(2, 2, configuration(&[2, 3, 4], &[1, 2, 3], &[]));
    let start = |entries: &[&Entry]| Start {
        hard_state: HardState { term: 2, vote: 0 },
        entries: entries.iter().map(|&entry| entry.clone()).collect(),
        mark: 1,
    };
    let (without, with) = (start(&[&old]), start(&[&old, &joint]));
    Suite {
        starts: vec![with.clone(), without.clone(), without, with],
        campaigners: vec![2, 4],
        budget: Budget {
            campaigns: 1,
            crashes: 1,
            ..Budget::default()
        },
        term_max: 4,
        ..Suite::new("membership, mid-joint")
    }
}

/// A leader purges what 3 has never seen, and 3 gets a snapshot; a crash anywhere.
fn snapshot() -> Suite {
    let start = |terms: &[Term]| Start {
        hard_state: HardState { term: 1, vote: 0 },
        entries: log(terms),
        mark: 1,
    };
    Suite {
        starts: vec![start(&[1]), start(&[1]), start(&[])],
        campaigners: vec![1],
        budget: Budget {
            campaigns: 1,
            crashes: 1,
            flushes: 1,
            ..Budget::default()
        },
        slow_disk: true,
        ..Suite::new("snapshot")
    }
}

/// Reads at any member, forwarded or not, while another leader is elected and messages come twice.
fn reads() -> Suite {
    Suite {
        campaigners: vec![2],
        budget: Budget {
            campaigns: 1,
            reads: 1,
            duplicates: 1,
            ..Budget::default()
        },
        leader_in_office: true,
        ..Suite::new("reads")
    }
}

/// A leader hands over and goes on, or not, while its messages come late.
fn transfer() -> Suite {
    Suite {
        name: "transfer",
        campaigners: vec![],
        budget: Budget {
            transfers: 1,
            reads: 1,
            proposals: 1,
            ..Budget::default()
        },
        ..reads()
    }
}

/// Clocks whose rates differ by as much as leases allow for; time passes where it likes.
fn lease() -> Suite {
    Suite {
        campaigners: vec![2],
        budget: Budget {
            campaigns: 1,
            crashes: 1,
            ticks: 1,
            ..Budget::default()
        },
        leader_in_office: true,
        clock: Some(Clock {
            units: 4,
            rates_ppm: vec![990_000, 1_010_000, 1_010_000],
        }),
        ..Suite::new("lease")
    }
}

#[test]
fn election_closes() {
    let reached = reaches! {
        "a leader is elected": |state| !state.ledger.leaders.is_empty(),
        "two terms have leaders": |state| state.ledger.leaders.len() == 2,
        "an entry commits": |state| state.ledger.highest_commit() > 1,
    };
    closes(&election(), reached);
}

#[test]
fn election_with_pre_vote_closes() {
    let reached = reaches! {
        "a leader is elected": |state| !state.ledger.leaders.is_empty(),
        "two terms have leaders": |state| state.ledger.leaders.len() == 2,
    };
    closes(&election_with_pre_vote(), reached);
}

#[test]
fn replication_closes() {
    let reached = reaches! {
        "a proposal commits": |state| state.ledger.committed.iter().any(|(entry, _)| entry.kind == EntryKind::Command && entry.term > 3),
        "the old tail is gone": |state| state.members[1].disk.term_at(4).is_none_or(|term| term > 2),
        "everyone has the same log": |state| state.ledger.highest_commit() > 3
            && state.members.iter().all(|member| member.raft.commit() == state.ledger.highest_commit()),
    };
    closes(&replication(), reached);
}

#[test]
fn figure_8_closes() {
    let reached = reaches! {
        "the first entry survives": |state| state.ledger.committed.iter().any(|(entry, _)| entry.index == 2 && entry.term == 2),
        "the second entry survives": |state| state.ledger.committed.iter().any(|(entry, _)| entry.index == 2 && entry.term == 3),
    };
    closes(&figure_8(), reached);
}

#[test]
fn disk_closes() {
    let reached = reaches! {
        "an entry commits": |state| state.ledger.highest_commit() > 1,
        "two writes are open": |state| state.members.iter().any(|member| member.writes.len() > 1),
        "two terms have leaders": |state| state.ledger.leaders.len() == 2,
    };
    closes(&disk(), reached);
}

#[test]
fn membership_closes() {
    let reached = reaches! {
        "a joint configuration commits": |state| state.members.iter().any(|member| member.raft.committed_configuration().is_joint()),
        "the joint configuration is left": |state| state.members.iter().any(|member| {
            !member.raft.committed_configuration().is_joint() && member.raft.committed_configuration().voters.contains(&3)
        }),
    };
    closes(&membership(), reached);
}

#[test]
fn mid_joint_closes() {
    let reached = reaches! {
        "the joint configuration is left": |state| state.members.iter().any(|member| {
            !member.raft.committed_configuration().is_joint() && member.raft.committed_configuration().voters.contains(&4)
        }),
        "the joint entry is cut": |state| state.members[3].raft.term_at(2).is_some_and(|term| term > 2),
    };
    closes(&mid_joint(), reached);
}

#[test]
fn snapshot_closes() {
    let reached = reaches! {
        "a log is purged": |state| state.members.iter().any(|member| member.disk.base.last.index > 0),
        "a snapshot is installed": |state| state.ledger.installs > 0,
        "a log is reset to a snapshot": |state| state.ledger.installs > 0
            && state.members.iter().all(|member| member.machine.install_record.is_none() && member.writes.is_empty()),
    };
    closes(&snapshot(), reached);
}

#[test]
fn reads_close() {
    let reached = reaches! {
        "a read is answered": |state| state.ledger.reads_ready > 0,
        "another leader is elected while a read waits": |state| !state.ledger.reads.is_empty() && state.ledger.leaders.len() > 1,
        "a read is answered beside a second leader": |state| state.ledger.reads_ready > 0 && state.ledger.leaders.len() > 1,
    };
    closes(&reads(), reached);
}

#[test]
fn transfer_closes() {
    let reached = reaches! {
        "leadership is handed over": |state| state.ledger.leaders.len() > 1,
        "a read is answered": |state| state.ledger.reads_ready > 0,
    };
    closes(&transfer(), reached);
}

#[test]
fn lease_closes() {
    let reached = reaches! {
        "a lease is held": |state| state.lease_holders > 0,
        "a lease is held in the second term": |state| state.lease_holders > 0 && state.ledger.leaders.len() == 2,
        "another leader is elected": |state| state.ledger.leaders.len() == 2,
    };
    closes(&lease(), reached);
}

/// The larger bounds: every budget of its suite raised.
#[test]
fn larger_bounds_hold_as_far_as_searched() {
    for suite in [
        election(),
        election_with_pre_vote(),
        replication(),
        figure_8(),
        disk(),
        membership(),
        mid_joint(),
        snapshot(),
        reads(),
        transfer(),
        lease(),
    ] {
        let raise = |times: u8| if times > 0 { times + 1 } else { 0 };
        let budget = Budget {
            campaigns: raise(suite.budget.campaigns),
            crashes: suite.budget.crashes + 1,
            proposals: suite.budget.proposals + 1,
            duplicates: suite.budget.duplicates + 1,
            reads: raise(suite.budget.reads),
            transfers: raise(suite.budget.transfers),
            changes: raise(suite.budget.changes),
            flushes: raise(suite.budget.flushes),
            ticks: raise(suite.budget.ticks),
        };
        let larger = Suite {
            budget,
            term_max: suite.term_max + 1,
            network: Network::Unordered,
            refusals: true,
            commit_hints: true,
            ..suite
        };
        holds_in_a_bounded_search(&larger);
    }
}

// The harness is proved: each bug, planted in the shell around the cores, is found by the suite named.

#[test]
fn disk_finds_writes_reported_too_early() {
    let rules = [
        "a vote is true of the disk when it leaves",
        "an acknowledgement is true of the disk when it leaves",
    ];
    finds(&disk(), Plant::PersistedTooEarly, &rules);
}

#[test]
fn disk_finds_a_leader_that_counts_what_it_has_not_synced() {
    let rules = ["a commit is of the leader's term and durable on a quorum"];
    finds(&disk(), Plant::LeaderCountsUnsynced, &rules);
}

#[test]
fn election_finds_a_lost_vote() {
    let rules = ["one vote a term, across restarts", "at most one leader a term"];
    finds(&election(), Plant::VoteLost, &rules);
}

#[test]
fn replication_finds_a_forgotten_cut() {
    let rules = [
        "an acknowledgement is true of the disk when it leaves",
        "equal entries have equal pasts",
    ];
    finds(&replication(), Plant::CutForgotten, &rules);
}

#[test]
fn membership_finds_a_forgotten_configuration() {
    let rules = [
        "a committed entry never changes",
        "equal entries have equal pasts",
        "an acknowledgement is true of the disk when it leaves",
    ];
    finds(&membership(), Plant::ConfigurationForgotten, &rules);
}

#[test]
fn snapshot_finds_an_install_reported_too_early() {
    let rules = ["a member restarts from its disk"];
    finds(&snapshot(), Plant::InstallTooEarly, &rules);
}

/// A read's name comes twice: the answer to the first life's read reaches the second's.
#[test]
fn reads_find_a_boot_number_used_twice() {
    let suite = Suite {
        budget: Budget {
            crashes: 1,
            reads: 2,
            proposals: 1,
            ..Budget::default()
        },
        ..reads()
    };
    finds(
        &suite,
        Plant::BootNotFresh,
        &["a read sees every commit before its arrival"],
    );
}

#[test]
fn lease_finds_a_restart_without_silence() {
    let rules = [
        "at most one valid lease",
        "a read sees every commit before its arrival",
    ];
    finds(&lease(), Plant::SilenceForgotten, &rules);
}
