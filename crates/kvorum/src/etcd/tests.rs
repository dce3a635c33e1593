//! Every flag of etcd 3.6 is here, and each has its effect, its warning or its refusal.

use std::collections::BTreeSet;
use std::time::Duration;

use kvorum_server::ServeOptions;
use kvorum_server::etcd_options::{Compaction, Endpoint, Serves};

use super::command_line::{Asked, read};
use super::flags::{FLAGS, FORGOTTEN, Fate, GATES, Kind, find};
use super::plan::{Plan, plan};
use super::values::{Place, Values, is_same};
use crate::config::{LogFormat, LogOutput, Settings};

/// The flags of etcd 3.6.16, from its source (`embed.Config.AddFlags` and `etcdmain`).
const OF_ETCD: &str = "advertise-client-urls auth-token auth-token-ttl auto-compaction-mode auto-compaction-retention \
    auto-tls backend-batch-interval backend-batch-limit backend-bbolt-freelist-type bcrypt-cost \
    bootstrap-defrag-threshold-megabytes cert-file cipher-suites client-cert-allowed-hostname client-cert-auth \
    client-cert-file client-crl-file client-key-file compact-hash-check-time compaction-batch-limit \
    compaction-sleep-interval config-file corrupt-check-time cors data-dir discovery discovery-cacert discovery-cert \
    discovery-dial-timeout discovery-endpoints discovery-fallback discovery-insecure-skip-tls-verify \
    discovery-insecure-transport discovery-keepalive-time discovery-keepalive-timeout discovery-key discovery-password \
    discovery-proxy discovery-request-timeout discovery-srv discovery-srv-name discovery-token discovery-user \
    distributed-tracing-address distributed-tracing-instance-id distributed-tracing-sampling-rate \
    distributed-tracing-service-name downgrade-check-time election-timeout enable-distributed-tracing \
    enable-grpc-gateway enable-log-rotation enable-pprof experimental-bootstrap-defrag-threshold-megabytes \
    experimental-compact-hash-check-enabled experimental-compact-hash-check-time experimental-compaction-batch-limit \
    experimental-compaction-sleep-interval experimental-corrupt-check-time experimental-distributed-tracing-address \
    experimental-distributed-tracing-instance-id experimental-distributed-tracing-sampling-rate \
    experimental-distributed-tracing-service-name experimental-downgrade-check-time \
    experimental-enable-distributed-tracing experimental-enable-lease-checkpoint \
    experimental-enable-lease-checkpoint-persist experimental-initial-corrupt-check experimental-memory-mlock \
    experimental-peer-skip-client-san-verification experimental-snapshot-catchup-entries \
    experimental-stop-grpc-service-on-defrag experimental-txn-mode-write-with-shared-buffer \
    experimental-warning-apply-duration experimental-warning-unary-request-duration \
    experimental-watch-progress-notify-interval feature-gates force-new-cluster grpc-keepalive-interval \
    grpc-keepalive-min-time grpc-keepalive-timeout heartbeat-interval host-whitelist initial-advertise-peer-urls \
    initial-cluster initial-cluster-state initial-cluster-token initial-election-tick-advance key-file \
    listen-client-http-urls listen-client-urls listen-metrics-urls listen-peer-urls log-format log-level log-outputs \
    log-rotation-config-json logger max-concurrent-streams max-learners max-request-bytes max-snapshots max-txn-ops \
    max-wals memory-mlock metrics name peer-auto-tls peer-cert-allowed-cn peer-cert-allowed-hostname peer-cert-file \
    peer-client-cert-auth peer-client-cert-file peer-client-key-file peer-crl-file peer-key-file \
    peer-skip-client-san-verification peer-trusted-ca-file pre-vote quota-backend-bytes raft-read-timeout \
    raft-write-timeout self-signed-cert-validity snapshot-catchup-entries snapshot-count socket-reuse-address \
    socket-reuse-port strict-reconfig-check tls-max-version tls-min-version trusted-ca-file unsafe-no-fsync \
    v2-deprecation version wal-dir warning-apply-duration warning-unary-request-duration \
    watch-progress-notify-interval";

/// Of etcd 3.4 and 3.5, which people's scripts still pass.
const OF_OLDER_ETCDS: &str = "debug enable-v2 experimental-max-learners experimental-snapshot-catch-up-entries \
    log-package-levels proxy proxy-dial-timeout proxy-failure-wait proxy-read-timeout proxy-refresh-interval \
    proxy-write-timeout";

/// What is refused until it is there: certificates and all around them, checks for damage, forcing, reuse of sockets,
/// discovery, tracing.
const REFUSED: &str = "cert-file key-file client-cert-auth client-cert-file client-key-file client-crl-file \
    client-cert-allowed-hostname trusted-ca-file auto-tls peer-cert-file peer-key-file peer-client-cert-auth \
    peer-client-cert-file peer-client-key-file peer-trusted-ca-file peer-cert-allowed-cn peer-cert-allowed-hostname \
    peer-auto-tls peer-crl-file peer-skip-client-san-verification cipher-suites tls-min-version tls-max-version \
    corrupt-check-time force-new-cluster socket-reuse-port socket-reuse-address discovery discovery-token \
    discovery-endpoints discovery-dial-timeout discovery-request-timeout discovery-keepalive-time \
    discovery-keepalive-timeout discovery-insecure-transport discovery-insecure-skip-tls-verify discovery-cert \
    discovery-key discovery-cacert discovery-user discovery-password discovery-fallback discovery-proxy discovery-srv \
    discovery-srv-name enable-distributed-tracing distributed-tracing-address distributed-tracing-service-name \
    distributed-tracing-instance-id distributed-tracing-sampling-rate enable-log-rotation";

fn words(text: &str) -> BTreeSet<&str> {
    text.split_whitespace().collect()
}

fn values(line: &str) -> Values {
    let arguments: Vec<_> = line.split_whitespace().map(Into::into).collect();
    match read(&arguments) {
        Ok(Asked::Member(values)) => values,
        other => panic!("{line}: {other:?}"),
    }
}

fn planned(line: &str) -> Result<Plan, String> {
    plan(values(line), Settings::default())
}

#[track_caller]
fn served(line: &str) -> ServeOptions {
    match planned(line) {
        Ok(plan) => {
            let serve = plan.settings.serve;
            assert!(serve.validate().is_ok(), "{line}: {:?}", serve.validate());
            serve
        }
        Err(why) => panic!("{line}: {why}"),
    }
}

#[track_caller]
fn fails(line: &str, expected: &str) {
    match planned(line) {
        Ok(_) => panic!("{line} was taken"),
        Err(why) => assert!(why.contains(expected), "{line}: {why}"),
    }
}

/// Another value than the default that reads.
fn other_value(flag: &super::flags::Flag) -> &'static str {
    match (flag.name, flag.kind) {
        ("auth-token", _) => "simple,x=y",
        ("initial-cluster-state", _) => "existing",
        ("auto-compaction-mode", _) => "revision",
        ("auto-compaction-retention", _) => "7",
        ("feature-gates", _) => "LeaseCheckpoint=true",
        ("log-format", _) => "console",
        ("log-level", _) => "warn",
        ("log-outputs", _) => "stdout",
        ("metrics", _) => "extensive",
        ("compat-version", _) => "3.5.0",
        ("cors", _) => "http://a.example",
        ("name", _) => "n7",
        ("initial-cluster", _) => "default=http://localhost:2380,n8=http://localhost:1",
        ("initial-advertise-peer-urls", _) => "http://127.0.0.1:2380",
        ("bcrypt-cost", _) => "11",
        ("heartbeat-interval", _) => "77",
        ("election-timeout", _) => "777",
        (_, Kind::Bool) if flag.default == "true" => "false",
        (_, Kind::Bool) => "true",
        (_, Kind::Text | Kind::Texts) => "something",
        (_, Kind::Urls) => "http://127.0.0.1:7777",
        (_, Kind::Uint | Kind::Int) => "77",
        (_, Kind::Duration) => "7s",
    }
}

fn with_value(flag: &super::flags::Flag) -> String {
    let partner = match flag.name {
        "auto-compaction-mode" => "--auto-compaction-retention=5",
        "listen-client-urls" => "--advertise-client-urls=http://localhost:2379",
        "initial-cluster-state" => "--initial-cluster=default=http://localhost:2380,b=http://localhost:1",
        _ => "",
    };
    format!("--{}={} {partner}", flag.name, other_value(flag))
}

#[test]
fn no_flag_of_etcd_is_missing() {
    let ours: BTreeSet<&str> = FLAGS.iter().map(|flag| flag.name).collect();
    let theirs: BTreeSet<&str> = words(OF_ETCD).union(&words(OF_OLDER_ETCDS)).copied().collect();
    let own: BTreeSet<&str> = FLAGS
        .iter()
        .filter(|flag| flag.fate == Fate::Ours)
        .map(|flag| flag.name)
        .collect();
    assert_eq!(ours, theirs.union(&own).copied().collect());
    assert_eq!(ours.len(), FLAGS.len(), "a flag stands there twice");
    for forgotten in FORGOTTEN {
        assert!(find(forgotten).is_none(), "{forgotten}");
        assert_eq!(values(&format!("--{forgotten}")).warnings.len(), 1);
    }
    for flag in FLAGS {
        let mut probe = Values::default();
        assert_eq!(
            probe.set(flag, flag.default, Place::Flag),
            Ok(()),
            "{}",
            flag.name
        );
        assert!(
            !is_same(flag.kind, other_value(flag), flag.default),
            "{}",
            flag.name
        );
    }
}

#[test]
fn every_flag_has_its_effect_its_warning_or_its_refusal() {
    // These change what is printed or read, not the settings; or they only count with another one, as in etcd; or
    // they switch on what is always on.
    let elsewhere = [
        "config-file",
        "version",
        "compact-hash-check-time",
        "feature-gates",
        "auth-token",
    ];
    let plain = |flag: &super::flags::Flag| {
        let partner = with_value(flag);
        let partner = partner.split_once(' ').map_or("", |(_, partner)| partner);
        planned(partner).unwrap_or_else(|why| panic!("{partner}: {why}"))
    };
    let refused = words(REFUSED);
    for flag in FLAGS {
        let line = with_value(flag);
        let result = planned(&line);
        match flag.fate {
            Fate::Refused(_) => {
                assert!(refused.contains(flag.name), "{} is not listed", flag.name);
                let why = result.expect_err(flag.name);
                assert!(
                    why.starts_with(&format!("--{} is not yet supported: ", flag.name)),
                    "{why}"
                );
                let default = format!("--{}={}", flag.name, flag.default);
                assert!(planned(&default).is_ok(), "{default} says nothing");
            }
            Fate::Ignored(_) => {
                let warnings = result.expect(flag.name).warnings;
                let expected = format!("--{} has no effect: ", flag.name);
                assert!(
                    warnings.iter().any(|warning| warning.starts_with(&expected)),
                    "{warnings:?}"
                );
            }
            Fate::Effect | Fate::Ours => {
                let plan = result.unwrap_or_else(|why| panic!("{line}: {why}"));
                assert!(plan.warnings.is_empty(), "{line}: {:?}", plan.warnings);
                let before = plain(flag);
                let is_same =
                    before.settings == plan.settings && before.until_stdin_closes == plan.until_stdin_closes;
                assert_eq!(is_same, elsewhere.contains(&flag.name), "{line} has no effect");
            }
            Fate::Renamed(new) => {
                let other = find(new).expect("a flag of the table");
                assert_eq!(
                    (other.kind, other.default),
                    (flag.kind, flag.default),
                    "{}",
                    flag.name
                );
                match (result, planned(&format!("--{new}={}", other_value(other)))) {
                    (Ok(old), Ok(new)) => {
                        assert_eq!(old.settings, new.settings, "{line}");
                        assert!(old.warnings[0].contains("is deprecated"), "{:?}", old.warnings);
                    }
                    (old, new) => assert_eq!(old.err(), new.err(), "{line}"),
                }
                let both = format!(
                    "--{}={} --{new}={}",
                    flag.name,
                    other_value(flag),
                    other_value(flag)
                );
                fails(
                    &both,
                    &format!("cannot set --{} and --{new} at the same time", flag.name),
                );
            }
            Fate::Gate(gate) => {
                let value = other_value(flag);
                match (result, planned(&format!("--feature-gates={gate}={value}"))) {
                    (Ok(old), Ok(new)) => assert_eq!(old.warnings.len(), new.warnings.len() + 1, "{line}"),
                    (old, new) => assert_eq!(old.err(), new.err(), "{line}"),
                }
                let both = format!("--{}={value} --feature-gates={gate}={value}", flag.name);
                fails(&both, "cannot specify both flags");
            }
        }
    }
    for name in refused {
        assert!(
            matches!(find(name).map(|flag| flag.fate), Some(Fate::Refused(_))),
            "{name}"
        );
    }
}

#[test]
fn gates_are_known_refused_or_without_effect() {
    for (name, default, fate) in GATES {
        assert!(
            planned(&format!("--feature-gates={name}={default}"))
                .unwrap()
                .warnings
                .is_empty()
        );
        let other = planned(&format!("--feature-gates={name}={}", !default));
        match fate {
            Fate::Refused(_) => assert!(other.unwrap_err().contains("is not yet supported")),
            Fate::Ignored(_) => assert!(other.unwrap().warnings[0].contains("has no effect")),
            _ => assert!(other.unwrap().warnings.is_empty(), "{name}"),
        }
    }
    fails("--feature-gates=Bogus=true", "unrecognized feature gate: Bogus");
    fails(
        "--feature-gates=LeaseCheckpoint",
        "missing bool value for LeaseCheckpoint",
    );
    fails(
        "--feature-gates=LeaseCheckpoint=maybe",
        "invalid value of LeaseCheckpoint=maybe",
    );
    fails(
        "--experimental-initial-corrupt-check",
        "InitialCorruptCheck=true is not yet supported",
    );
    fails("--feature-gates=InitialCorruptCheck=true", "compare a digest");
}

#[test]
fn without_flags_it_is_etcds_default_member() {
    let serve = served("");
    assert_eq!(
        (serve.name.as_str(), serve.data_dir.to_str()),
        ("default", Some("default.etcd"))
    );
    assert_eq!(serve.cluster_token, "etcd-cluster");
    let shown: Vec<String> = serve.listen_client.iter().map(ToString::to_string).collect();
    assert_eq!(
        (shown.join(","), serve.listen_peer.to_string()),
        ("localhost:2379".into(), "localhost:2380".into())
    );
    assert_eq!(serve.client_urls(), ["http://localhost:2379"]);
    assert_eq!(serve.founders().len(), 1);
    assert_eq!((serve.quota.bytes, serve.quota.alarm_stays), (2 << 30, true));
    assert_eq!(serve.etcd.compaction, Some(Compaction::Off));
    assert_eq!(serve.election_timeout, Duration::from_secs(1));
    assert_eq!(serve.heartbeat_interval, Duration::from_millis(100));
    assert_eq!(serve.etcd.slow_request, Duration::from_millis(300));
    assert_eq!(
        (serve.etcd.learners_max, serve.etcd.strict_reconfiguration),
        (1, true)
    );
    assert!(serve.etcd.pre_vote && !serve.etcd.rpc_durations && serve.surfaces.health_as_etcd);
    assert!(serve.surfaces.errors_as_text);
    let log = planned("").unwrap().settings.log;
    assert_eq!(
        (log.format, log.outputs),
        (LogFormat::Json, vec![LogOutput::Stderr])
    );
}

#[test]
fn values_mean_what_they_mean_in_etcd() {
    assert_eq!(served("--quota-backend-bytes=-1").quota.bytes, 0);
    assert_eq!(served("--quota-backend-bytes=16777216").quota.bytes, 16 << 20);
    assert!(planned("--quota-backend-bytes=9000000000").unwrap().warnings[0].contains("quota exceeds"));
    let compaction = |line: &str| served(line).etcd.compaction.unwrap();
    for (retention, expected) in [
        ("1", Compaction::Periodic(Duration::from_secs(3600))),
        ("90m", Compaction::Periodic(Duration::from_secs(5400))),
        ("10s", Compaction::Periodic(Duration::from_secs(10))),
        ("0", Compaction::Off),
        ("0s", Compaction::Off),
    ] {
        assert_eq!(
            compaction(&format!("--auto-compaction-retention={retention}")),
            expected
        );
    }
    let revisions = "--auto-compaction-mode=revision --auto-compaction-retention=1000";
    assert_eq!(compaction(revisions), Compaction::Revisions(1000));
    fails(
        "--auto-compaction-retention=soon",
        "error parsing CompactionRetention",
    );
    fails(
        "--auto-compaction-retention=-5m",
        "error parsing CompactionRetention",
    );
    fails(
        "--auto-compaction-mode=lunar",
        "unknown auto-compaction-mode \"lunar\"",
    );
    fails("--auto-compaction-mode=", "undefined auto-compaction-mode");
    fails(
        "--heartbeat-interval=300",
        "--election-timeout[1000ms] should be at least as 5 times as --heartbeat-interval[300ms]",
    );
    fails("--heartbeat-interval=0", "--heartbeat-interval must be >0");
    fails(
        "--election-timeout=60000",
        "--election-timeout[60000ms] is too long",
    );
    assert_eq!(
        served("--watch-progress-notify-interval=5s").etcd.watch_progress,
        Duration::from_secs(5)
    );
    let short = planned("--watch-progress-notify-interval=5ms").unwrap();
    assert_eq!(
        short.settings.serve.etcd.watch_progress,
        Duration::from_millis(100)
    );
    assert!(
        short.warnings[0].contains("adjusting watch progress"),
        "{:?}",
        short.warnings
    );
    assert!(served("--grpc-keepalive-interval=0").etcd.ping_interval.is_zero());
    assert!(served("--grpc-keepalive-timeout=0s").etcd.ping_interval.is_zero());
    assert_eq!(served("--max-learners=3").etcd.learners_max, 3);
    for (line, per_second) in [
        ("", 100_000),
        (
            "--compaction-batch-limit=0 --compaction-sleep-interval=0s",
            100_000,
        ),
        ("--compaction-batch-limit=10", 1_000),
        ("--compaction-sleep-interval=1s", 1_000),
        ("--compaction-batch-limit=1 --compaction-sleep-interval=1m", 1),
        (
            "--compaction-batch-limit=9223372036854775807 --compaction-sleep-interval=1ns",
            u64::MAX,
        ),
    ] {
        assert_eq!(served(line).etcd.removals_per_second, per_second, "{line}");
    }
    fails(
        "--compaction-batch-limit=-1",
        "--compaction-batch-limit must be >=0",
    );
    fails("--max-request-bytes=50000000", "more than the 16777216");
    fails("--max-concurrent-streams=5000000000", "more than 4294967295");
    fails(
        "--auth-token=jwt,pub-key=a.pem,sign-method=RS256",
        "--auth-token=jwt is not yet supported",
    );
    fails("--auth-token=paper", "unknown token type \"paper\"");
    let auth = |line: &str| planned(line).unwrap().settings.serve.auth;
    assert_eq!(auth("--bcrypt-cost=4").bcrypt_cost, 4);
    assert_eq!(auth("--auth-token-ttl=7").token_ttl, Duration::from_secs(7));
    assert_eq!(auth("--auth-token-ttl=0"), Default::default());
    assert_eq!(
        served("--auth-token-ttl=5").auth.token_ttl,
        Duration::from_secs(5)
    );
    assert_eq!(
        served("--auth-token-ttl=0").auth.token_ttl,
        Duration::from_secs(300)
    );
    assert_eq!(served("--bcrypt-cost=4").auth.bcrypt_cost, 4);
    assert!(planned("--bcrypt-cost=3").unwrap().warnings[0].contains("use default bcrypt-cost"));
    fails("--compat-version=3.x", "is no version of etcd");
    assert_eq!(served("--compat-version=3.5.21").etcd.version, "3.5.21");
    fails("--log-format=xml", "unknown log format: xml");
    fails("--log-level=loud", "unknown level");
    fails("--log-outputs=default,stdout", "multi logoutput");
    let log = planned("--log-outputs=stdout,/tmp/k.log --log-level=fatal")
        .unwrap()
        .settings
        .log;
    assert_eq!(
        log.outputs,
        [LogOutput::Stdout, LogOutput::File("/tmp/k.log".into())]
    );
    assert_eq!(log.level, tracing::Level::ERROR);
    assert_eq!(served("--host-whitelist=a,b --cors=").surfaces.cors, ["*"]);
}

#[test]
fn sockets_are_opened_for_what_they_are() {
    let serve = served(
        "--listen-client-urls=http://127.0.0.1:1,unix:///tmp/k.sock --advertise-client-urls=http://h.example:1 \
         --listen-metrics-urls=http://127.0.0.1:2 --listen-peer-urls=http://127.0.0.1:3,http://127.0.0.2:3",
    );
    assert_eq!(serve.listen_client.len(), 1);
    let more: Vec<_> = serve.etcd.listeners.iter().map(|l| (&l.at, l.serves)).collect();
    assert_eq!(more[0], (&Endpoint::Unix("/tmp/k.sock".into()), Serves::All));
    assert_eq!(
        more[1],
        (
            &Endpoint::Tcp("127.0.0.1:2".parse().unwrap_or_else(|_| unreachable!())),
            Serves::Metrics
        )
    );
    assert_eq!(serve.etcd.listen_peer_also.len(), 1);
    assert_eq!(serve.advertise_client, ["http://h.example:1"]);
    let split = served(
        "--listen-client-urls=http://127.0.0.1:1 --listen-client-http-urls=http://127.0.0.1:2 \
         --advertise-client-urls=http://127.0.0.1:1",
    );
    let kinds: Vec<Serves> = split
        .etcd
        .listeners
        .iter()
        .map(|listener| listener.serves)
        .collect();
    assert!(split.listen_client.is_empty());
    assert_eq!(kinds, [Serves::Grpc, Serves::Http]);
    assert_eq!(split.probe_addresses().count(), 1);
    fails(
        "--listen-client-urls=http://127.0.0.1:1",
        "--advertise-client-urls is required when --listen-client-urls is set explicitly",
    );
    let with = "--advertise-client-urls=http://localhost:1";
    fails(
        &format!("--listen-client-urls=http://example.com:1 {with}"),
        "expected IP in URL for binding",
    );
    fails(
        &format!("--listen-client-urls=https://127.0.0.1:1 {with}"),
        "TLS is not yet supported",
    );
    fails(
        &format!(
            "--listen-client-urls=http://127.0.0.1:1 --listen-client-http-urls=http://127.0.0.1:1 {with}"
        ),
        "cannot bind both",
    );
    fails(
        "--advertise-client-urls=https://h:1",
        "--advertise-client-urls: https://h:1: TLS is not yet supported",
    );
    fails("--listen-peer-urls=unix:///tmp/p", "not yet supported");
    assert_eq!(
        served("--advertise-client-urls=unix:///tmp/k.sock").client_urls(),
        ["unix:///tmp/k.sock"]
    );
}

const THREE: &str = "--initial-cluster=n1=http://127.0.0.1:1,n2=http://127.0.0.1:2,n3=http://127.0.0.1:3,n3=http://127.0.0.1:4";

#[test]
fn members_are_founders_or_join() {
    let line = format!("--name n1 --initial-advertise-peer-urls http://127.0.0.1:1 {THREE}");
    let serve = served(&line);
    let founders: Vec<String> = serve.founders().iter().map(ToString::to_string).collect();
    assert_eq!(founders.join(","), "n1=127.0.0.1:1,n2=127.0.0.1:2,n3=127.0.0.1:3");
    let identity = serve.etcd.identity.as_ref().unwrap_or_else(|| unreachable!());
    assert_eq!(identity.urls("n3"), ["http://127.0.0.1:3", "http://127.0.0.1:4"]);
    assert_eq!(
        serve.founder_addresses(&serve.founders()[2]),
        ["127.0.0.1:3", "127.0.0.1:4"]
    );
    assert!(!serve.join);
    assert!(served(&format!("{line} --initial-cluster-state existing")).join);
    // Named alone, it founds a cluster alone.
    let alone = served("--name n9 --initial-advertise-peer-urls http://127.0.0.1:9");
    assert_eq!(alone.founders()[0].to_string(), "n9=127.0.0.1:9");
    assert_eq!(alone.data_dir.to_str(), Some("n9.etcd"));
    fails(
        &format!("--name n7 {THREE}"),
        "couldn't find local name \"n7\" in the initial cluster configuration",
    );
    fails(
        &format!("--name n1 {THREE}"),
        "--initial-cluster has n1=http://127.0.0.1:1 but missing from \
         --initial-advertise-peer-urls=http://localhost:2380",
    );
    let twice = "--initial-advertise-peer-urls=http://127.0.0.1:1,http://127.0.0.1:9 --name=n1";
    fails(
        &format!("{twice} {THREE}"),
        "--initial-advertise-peer-urls has http://127.0.0.1:9 but missing from \
         --initial-cluster=n1=http://127.0.0.1:1,n1=http://127.0.0.1:9",
    );
    fails(
        "--name=a --initial-advertise-peer-urls=http://h:1 --initial-cluster=a=http://h:1,b=http://h:1",
        "has duplicate url",
    );
    fails("--initial-cluster-state=odd", "unexpected clusterState \"odd\"");
    fails(
        "--initial-cluster-state=existing",
        "could not retrieve cluster information from the given URLs",
    );
    fails(
        "--initial-cluster=default=https://localhost:2380",
        "TLS is not yet supported",
    );
    fails(
        "--initial-cluster=default=localhost:2380",
        "error setting up initial cluster: URL scheme must be",
    );
    // A name here may be an address there.
    served(
        "--initial-cluster=default=http://127.0.0.1:2380 --initial-advertise-peer-urls=http://127.0.0.1:2380",
    );
}

/// The documentation's table has every flag that has a meaning of its own.
#[test]
fn the_documentation_has_every_flag() {
    let text = include_str!("../../../../docs/operations.md");
    for flag in FLAGS.iter().filter(|flag| flag.name != "until-stdin-closes") {
        let is_old_name = matches!(flag.fate, Fate::Renamed(_) | Fate::Gate(_));
        assert!(
            is_old_name || text.contains(&format!("`{}`", flag.name)),
            "{}",
            flag.name
        );
    }
}
