use super::*;

#[test]
fn durations_fall_into_their_buckets() {
    let check = |micros: u64, bucket: usize| {
        let histogram = Histogram::default();
        histogram.observe(Duration::from_micros(micros));
        let hit = histogram
            .buckets
            .iter()
            .position(|count| count.load(Ordering::Relaxed) == 1);
        assert_eq!(hit, Some(bucket), "{micros} µs");
    };
    check(0, 0);
    check(10, 0);
    check(11, 1);
    check(20, 1);
    check(21, 2);
    check(40, 2);
    check(41, 3);
    check(10 << 19, 19);
    check((10 << 19) + 1, 20);
    check(u64::MAX / 2, 20);
}

#[test]
fn the_text_format() {
    let mut page = Exposition::default();
    page.gauge("a", "An a.").sample(&[], 7);
    page.counter("b", "A b.")
        .sample(&[("x", "q\"\\\n"), ("y", "z")], 1);
    page.histogram("h", "An h.")
        .buckets(&[("m", "n")], &[0.5, 1.0], &[1, 2, 3], 4.5);
    let expected = "# HELP a An a.\n# TYPE a gauge\na 7\n\
        # HELP b A b.\n# TYPE b counter\nb{x=\"q\\\"\\\\\\n\",y=\"z\"} 1\n\
        # HELP h An h.\n# TYPE h histogram\n\
        h_bucket{m=\"n\",le=\"0.5\"} 1\nh_bucket{m=\"n\",le=\"1\"} 3\nh_bucket{m=\"n\",le=\"+Inf\"} 6\n\
        h_sum{m=\"n\"} 4.5\nh_count{m=\"n\"} 6\n";
    assert_eq!(page.into_text(), expected);
}

/// As etcd has them: the figure said `type` alone, so that nobody could tell slow requests from slow refusals.
#[test]
fn durations_of_requests_tell_failures_apart() {
    let metrics = Metrics::default();
    for result in [Ok(()), Err(Status::unavailable("no leader")), Ok(())] {
        let started = metrics.begin(Method::Put);
        let _ = metrics.end(Method::Put, started, result);
    }
    let mut page = Exposition::default();
    metrics.render_requests(&mut page);
    metrics.render_calls(&mut page);
    let text = page.into_text();
    for (line, count) in [
        (
            "etcd_server_request_duration_seconds_count{success=\"false\",type=\"Put\"}",
            1,
        ),
        (
            "etcd_server_request_duration_seconds_count{success=\"true\",type=\"Put\"}",
            2,
        ),
    ] {
        assert!(text.contains(&format!("{line} {count}\n")), "{line}: {text}");
    }
    let all = text.lines().find(|line| {
        line.starts_with("grpc_server_handling_seconds_count")
            && line.contains("grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\"")
    });
    assert!(all.unwrap().ends_with(" 3"), "{all:?}");
}
