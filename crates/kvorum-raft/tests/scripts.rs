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
    behind_snapshot
    check_quorum
    cold_start
    duel
    figure_7
    figure_8
    heartbeat_bound
    idle_probe
    lagging_commit
    late_append
    late_refusal
    leader_asks_again
    leader_slow_disk
    lost_data
    must_vote
    one_way
    partial_mesh
    persist_failed
    prevote_both
    prevote_isolated
    prevote_low_term
    prevote_mixed
    prevote_old_grant
    purge_pinned
    purged_empty
    quota
    restart_silence
    self_vote_gated
    slow_follower
    snap_conflict
    snap_crash
    snap_dies
    snap_idle
    snap_old_stream
    snap_other_index
    snap_prefix
    snap_stale
    stale_ack
    sticky
    sticky_leader
    stuck_high_term
    transfer_lagging
    vote_gated
    vote_log
    window_lost
}
