use super::*;

#[test]
fn addresses_parse_and_print() {
    for good in [
        "127.0.0.1:2379",
        "localhost:0",
        "[::1]:2380",
        "node-1.kvorum.svc:2380",
        "*:8080",
    ] {
        assert_eq!(good.parse::<Address>().unwrap().to_string(), good);
    }
    for bad in [
        "",
        "2379",
        ":2379",
        "a:b",
        "::1:2380",
        "[::1:2380",
        "[x]:1",
        "a b:1",
        "h:65536",
        "http://h:1",
        "*.example:1",
    ] {
        let error = bad.parse::<Address>().unwrap_err().to_string();
        assert!(error.contains("host:port"), "{bad}: {error}");
    }
}

#[test]
fn defaults_are_a_valid_lone_member() {
    let options = ServeOptions::default();
    options.validate().unwrap();
    assert_eq!(options.founders(), ["node-1=127.0.0.1:2380".parse().unwrap()]);
    assert_eq!(options.client_urls(), ["http://127.0.0.1:2379"]);
}

#[track_caller]
fn check(change: impl FnOnce(&mut ServeOptions), expected: &str) {
    let mut options = ServeOptions::default();
    change(&mut options);
    let error = options.validate().unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
    assert!(!error.contains('\n'), "{error}");
}

#[test]
fn contradictions_are_named() {
    let cluster = |text: &str| -> Vec<Founder> { text.split(',').map(|f| f.parse().unwrap()).collect() };
    check(|o| o.name = String::new(), "name `` must be");
    check(|o| o.name = "a b".into(), "name `a b` must be");
    check(|o| o.cluster_token = "x".repeat(129), "cluster-token");
    check(
        |o| o.initial_cluster = cluster("a=h:1,b=h:2"),
        "is not in initial-cluster (a, b)",
    );
    check(|o| o.initial_cluster = cluster("node-1=h:1,node-1=h:2"), "twice");
    check(|o| o.initial_cluster = cluster("node-1=h:1,b=h:1"), "two members");
    check(
        |o| o.initial_cluster = cluster("node-1=0.0.0.0:1"),
        "cannot reach",
    );
    check(|o| o.join = true, "join needs");
    check(
        |o| {
            o.join_through = vec![Address::new("h", 1)];
            o.listen_peer = Address::new("127.0.0.1", 0);
        },
        "advertise-peer",
    );
    check(
        |o| {
            o.serve_when_voter = true;
            o.listen_peer = o.listen_client[0].clone();
        },
        "listen-peer of its own",
    );
    check(|o| o.listen_client.clear(), "listen-client is empty");
    check(
        |o| o.listen_client.push(Address::new("localhost", 2379)),
        "listen-client names 127.0.0.1:2379 and localhost:2379",
    );
    check(
        |o| o.listen_peer = Address::new("localhost", 2379),
        "listen-client 127.0.0.1:2379 and listen-peer localhost:2379 are one port",
    );
    check(
        |o| o.listen_client.push(Address::new("0.0.0.0", 1)),
        "allow-plaintext",
    );
    check(
        |o| o.listen_peer = Address::new("10.0.0.1", 1),
        "listen-peer 10.0.0.1:1 can be reached",
    );
    check(|o| o.advertise_client = vec!["h:1".into()], "advertise-client");
    check(
        |o| o.election_timeout = Duration::from_millis(49),
        "election-timeout",
    );
    check(
        |o| o.election_timeout = Duration::from_secs(51),
        "election-timeout",
    );
    check(
        |o| o.heartbeat_interval = Duration::from_millis(151),
        "at most a fifth",
    );
    check(|o| o.heartbeat_interval = Duration::ZERO, "heartbeat-interval");
    check(|o| o.requests_max = 0, "requests-max");
    check(|o| o.append_entries_max = 0, "append-entries-max");
    check(|o| o.check_quorum = Duration::from_millis(199), "check-quorum");
    check(|o| o.log_bytes_max = 100 << 20, "twice memtable-bytes");
    check(
        |o| o.surfaces.cors = vec!["localhost".into()],
        "cors: `localhost`",
    );
}

#[test]
fn a_request_waits_as_long_as_it_is_told_and_no_longer() {
    let limit = |told| {
        let options = ServeOptions {
            request_timeout: told,
            ..ServeOptions::default()
        };
        options.request_limit()
    };
    assert_eq!(limit(Duration::from_secs(2)), Duration::from_secs(2));
    assert_eq!(limit(Duration::ZERO), Duration::from_millis(6500));
}

#[test]
fn founders_are_looked_for_in_the_domain_too() {
    let addresses = |founder: &str| {
        let options = ServeOptions {
            peer_domain: "kv.default.svc.cluster.local".into(),
            ..ServeOptions::default()
        };
        options.founder_addresses(&founder.parse().unwrap())
    };
    assert_eq!(
        addresses("n1=n1:8080"),
        ["n1:8080", "n1.kv.default.svc.cluster.local:8080"]
    );
    for whole in ["n1=n1.kv:8080", "n1=localhost:8080", "n1=[fd00::1]:8080"] {
        assert_eq!(addresses(whole), [whole.strip_prefix("n1=").unwrap()]);
    }
}

#[test]
fn what_others_are_told_can_be_reached() {
    let options = ServeOptions {
        name: "n2".into(),
        initial_cluster: vec!["n1=a:2380".parse().unwrap(), "n2=b:2380".parse().unwrap()],
        listen_client: vec![Address::new("0.0.0.0", 2379)],
        listen_peer: Address::new("0.0.0.0", 2380),
        allow_plaintext: true,
        ..ServeOptions::default()
    };
    options.validate().unwrap();
    assert_eq!(options.peer_address(), Address::new("b", 2380));
    assert_eq!(options.client_urls(), ["http://b:2379"]);
}
