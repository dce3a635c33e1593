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
