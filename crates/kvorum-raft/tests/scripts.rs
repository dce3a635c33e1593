//! One test for each golden script; `tests/script/mod.rs` explains the language.

#![allow(clippy::unwrap_used)]

mod harness;
mod script;

macro_rules! scripts {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                script::run_script(stringify!($name));
            }
        )*

        /// Every script file has its test.
        #[test]
        fn no_script_is_forgotten() {
            let names = [$(stringify!($name)),*];
            for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts")).unwrap() {
                let path = file.unwrap().path();
                let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
                assert!(names.contains(&name.as_str()), "{name}.txt is not run");
            }
        }
    };
}

scripts! {
    aba
    append_entries
    behind_snapshot
    change_busy
    check_quorum
    check_quorum_sooner
    cold_start
    config_cut
    config_phantom
    dead_half
    duel
    figure_7
    figure_8
    heartbeat_bound
    idle_probe
    join
    joint_leader_dies
    joint_restart
    lagging_commit
    late_append
    late_refusal
    leader_asks_again
    leader_slow_disk
    lease_abort
    lease_outside
    lease_pause
    lease_voters_restart
    leave_commits
    leave_once
    lost_data
    must_vote
    one_way
    partial_mesh
    pause_follower
    persist_failed
    prevote_both
    prevote_isolated
    prevote_low_term
    prevote_mixed
    prevote_old_grant
    purge_pinned
    purged_empty
    quota
    read_batch
    read_deposed
    read_joint
    read_late_ack
    read_new_leader
    read_retry
    removed_unaware
    replace_leader
    restart_silence
    self_vote_gated
    single
    slow_follower
    snap_conflict
    snap_crash
    snap_dies
    snap_idle
    snap_old_stream
    snap_other_index
    snap_prefix
    snap_stale
    snap_term
    stale_ack
    sticky
    sticky_leader
    stranger
    stuck_high_term
    transfer_again
    transfer_dead
    transfer_lagging
    transfer_late
    transfer_removed
    two_to_one
    vote_gated
    vote_joint
    vote_log
    window_lost
}
