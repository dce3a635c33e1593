//! The text of the page.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;

use super::Histogram;

/// A page in Prometheus' text format (version 0.0.4).
#[derive(Debug, Default)]
pub struct Exposition(String);

/// A metric on the page, to which samples are added.
pub struct Family<'a> {
    page: &'a mut String,
    name: &'static str,
}

impl Exposition {
    /// An empty page with room for so many bytes.
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Exposition(String::with_capacity(bytes))
    }

    /// The whole text.
    pub(super) fn into_text(self) -> String {
        self.0
    }

    /// A metric that only grows.
    pub fn counter(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, help, "counter")
    }

    /// A metric that moves.
    pub fn gauge(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, help, "gauge")
    }

    /// A metric in buckets.
    pub fn histogram(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, help, "histogram")
    }

    fn family(&mut self, name: &'static str, help: &str, kind: &str) -> Family<'_> {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        Family {
            page: &mut self.0,
            name,
        }
    }
}

impl Family<'_> {
    /// One value.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: u64) {
        self.line("", labels, None, value);
    }

    /// One value that is not whole.
    pub fn sample_float(&mut self, labels: &[(&str, &str)], value: f64) {
        self.line("", labels, None, value);
    }

    /// A histogram from counts per bucket: `bounds` in seconds, and one more count above the last.
    pub fn buckets(&mut self, labels: &[(&str, &str)], bounds: &[f64], counts: &[u64], sum_seconds: f64) {
        assert_eq!(counts.len(), bounds.len() + 1, "a bucket above the last bound");
        let mut total = 0;
        for (bound, count) in bounds.iter().zip(counts) {
            total += count;
            self.line("_bucket", labels, Some(&bound.to_string()), total);
        }
        total += counts[bounds.len()];
        self.line("_bucket", labels, Some("+Inf"), total);
        self.line("_sum", labels, None, sum_seconds);
        self.line("_count", labels, None, total);
    }

    pub(crate) fn histogram(&mut self, labels: &[(&str, &str)], histogram: &Histogram) {
        self.histograms(labels, std::slice::from_ref(histogram));
    }

    /// Several as one.
    pub(crate) fn histograms(&mut self, labels: &[(&str, &str)], histograms: &[Histogram]) {
        let bound = |bucket: usize| (Histogram::FIRST_BOUND_MICROS << bucket) as f64 / 1e6;
        let bounds: Vec<f64> = (0..Histogram::BOUNDS).map(bound).collect();
        let all = |of: &dyn Fn(&Histogram) -> u64| histograms.iter().map(of).sum::<u64>();
        let counts: Vec<u64> = (0..=Histogram::BOUNDS)
            .map(|bucket| all(&|histogram| histogram.buckets[bucket].load(Ordering::Relaxed)))
            .collect();
        let sum_micros = all(&|histogram| histogram.sum_micros.load(Ordering::Relaxed));
        self.buckets(labels, &bounds, &counts, sum_micros as f64 / 1e6);
    }

    fn line(
        &mut self,
        suffix: &str,
        labels: &[(&str, &str)],
        le: Option<&str>,
        value: impl std::fmt::Display,
    ) {
        let _ = write!(self.page, "{}{suffix}", self.name);
        let labels = labels.iter().copied().chain(le.map(|le| ("le", le)));
        let mut separator = '{';
        for (label, value) in labels {
            let value = value
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            let _ = write!(self.page, "{separator}{label}=\"{value}\"");
            separator = ',';
        }
        if separator == ',' {
            self.page.push('}');
        }
        let _ = writeln!(self.page, " {value}");
    }
}
