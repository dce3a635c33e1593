//! What a run cost and what came of it, for people and as one JSON object.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::load::Figures;
use super::process::{Usage, own_cpu, usage};
use crate::failure::Failure;
use crate::units::format_duration;

/// Different error texts that are kept.
const ERROR_TEXTS_MAX: usize = 16;

/// What failed or was answered wrongly.
#[derive(Default)]
pub struct Errors {
    count: u64,
    /// What was wrong, and how often.
    texts: BTreeMap<String, u64>,
}

impl Errors {
    /// One more.
    pub fn note(&mut self, text: String) {
        self.count += 1;
        if self.texts.len() < ERROR_TEXTS_MAX || self.texts.contains_key(&text) {
            *self.texts.entry(text).or_default() += 1;
        }
    }

    /// Whether there was none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// What was wrong.
    pub fn texts(&self) -> impl Iterator<Item = &String> {
        self.texts.keys()
    }
}

/// A measurement that has begun.
pub struct Measuring {
    start: Instant,
    client_cpu: Duration,
    servers: Vec<(u32, Option<Usage>)>,
}

/// What was measured between the two ends.
pub struct Measured {
    elapsed: Duration,
    client_cpu: Duration,
    /// For each process: before and after, if it was there.
    servers: Vec<(u32, Option<(Usage, Usage)>)>,
}

impl Measuring {
    /// From now on; `pids` are the servers' processes.
    pub fn start(pids: &[u32]) -> Self {
        Measuring {
            servers: pids.iter().map(|pid| (*pid, usage(*pid))).collect(),
            start: Instant::now(),
            client_cpu: own_cpu(),
        }
    }

    /// Until now.
    pub fn end(self) -> Measured {
        let servers = self.servers.into_iter();
        Measured {
            elapsed: self.start.elapsed(),
            client_cpu: own_cpu() - self.client_cpu,
            servers: servers
                .map(|(pid, before)| (pid, before.zip(usage(pid))))
                .collect(),
        }
    }
}

/// All that is said about a run.
pub struct Report<'a> {
    /// What was asked for, a JSON object.
    pub setting: Value,
    /// Kinds of operations that there were.
    pub kinds: Vec<(&'a str, &'a Figures)>,
    /// What stands several times in one operation, and how often.
    pub in_each: Option<(&'a str, u64)>,
    /// Over how many the CPU time is spread.
    pub ops: u64,
    /// What went wrong.
    pub errors: &'a Errors,
    /// The cost.
    pub measured: &'a Measured,
}

impl Report<'_> {
    /// Prints it.
    ///
    /// # Errors
    /// Something went wrong in the run, or nothing was done.
    pub fn print(self, as_json: bool) -> Result<(), Failure> {
        let mut out = crate::verbs::Output::start();
        if as_json {
            out.json(&self.json())?;
        } else {
            self.text(&mut out)?;
        }
        out.end()?;
        if !self.errors.is_empty() {
            return Err(Failure::error(format!(
                "{} calls failed or were answered wrongly",
                self.errors.count
            )));
        }
        if self.ops == 0 {
            return Err(Failure::error("no call was answered in time"));
        }
        Ok(())
    }

    fn seconds(&self) -> f64 {
        self.measured.elapsed.as_secs_f64()
    }

    fn cpu_us_per_op(&self, cpu: Duration) -> f64 {
        cpu.as_secs_f64() * 1e6 / self.ops.max(1) as f64
    }

    fn json(&self) -> Value {
        let server = |(pid, usage): &(u32, Option<(Usage, Usage)>)| match usage {
            Some((before, after)) => {
                let cpu = after.cpu.saturating_sub(before.cpu);
                json!({
                    "pid": pid,
                    "cpu_seconds": cpu.as_secs_f64(),
                    "cpu_us_per_op": self.cpu_us_per_op(cpu),
                    "rss_bytes": after.rss,
                })
            }
            None => json!({"pid": pid, "error": "it ended"}),
        };
        let mut line = self.setting.clone();
        line["seconds"] = json!(self.seconds());
        line["ops"] = json!(self.ops);
        line["ops_per_second"] = json!(self.ops as f64 / self.seconds());
        line["errors"] = json!(self.errors.count);
        line["error_texts"] = json!(self.errors.texts);
        line["client_cpu_seconds"] = json!(self.measured.client_cpu.as_secs_f64());
        line["client_cpu_us_per_op"] = json!(self.cpu_us_per_op(self.measured.client_cpu));
        line["servers"] = self.measured.servers.iter().map(server).collect();
        for (kind, figures) in &self.kinds {
            line[*kind] = figures_json(figures, self.seconds());
        }
        line
    }

    fn text(&self, out: &mut impl Write) -> Result<(), Failure> {
        let seconds = self.seconds();
        for (kind, figures) in &self.kinds {
            let shown = |nanos: u64| format_duration(Duration::from_micros(nanos.div_ceil(1000)));
            let at = |quantile: f64| shown(figures.latency.value_at_quantile(quantile));
            writeln!(
                out,
                "{}: {:.0}/s  p50 {}  p99 {}  p99.9 {}  max {}  ({} in {seconds:.1} s)",
                kind.replace('_', " "),
                figures.done as f64 / seconds,
                at(0.5),
                at(0.99),
                at(0.999),
                shown(figures.latency.max()),
                figures.done,
            )?;
        }
        if let Some((what, each)) = self.in_each {
            writeln!(out, "{what}: {:.0}/s, {each} in each", self.ops as f64 / seconds)?;
        }
        let cpu = self.cpu_us_per_op(self.measured.client_cpu);
        writeln!(out, "client: {cpu:.1} us CPU an operation")?;
        for (pid, usage) in &self.measured.servers {
            match usage {
                Some((before, after)) => writeln!(
                    out,
                    "process {pid}: {:.1} us CPU an operation, {} MiB resident",
                    self.cpu_us_per_op(after.cpu.saturating_sub(before.cpu)),
                    after.rss >> 20,
                )?,
                None => writeln!(out, "process {pid}: it ended")?,
            }
        }
        for (text, count) in &self.errors.texts {
            writeln!(out, "error, {count} times: {text}")?;
        }
        Ok(())
    }
}

fn figures_json(figures: &Figures, seconds: f64) -> Value {
    let micros = |nanos: u64| nanos as f64 / 1000.0;
    let at = |quantile: f64| micros(figures.latency.value_at_quantile(quantile));
    json!({
        "ops": figures.done,
        "ops_per_second": figures.done as f64 / seconds,
        "latency_us": {
            "mean": figures.latency.mean() / 1000.0,
            "p50": at(0.5),
            "p90": at(0.9),
            "p99": at(0.99),
            "p99_9": at(0.999),
            "max": micros(figures.latency.max()),
        },
    })
}
