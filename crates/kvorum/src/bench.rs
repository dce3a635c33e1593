//! `bench`: a load generator over unary etcd gRPC that costs little itself, so that it measures the servers.
//!
//! One thread drives all connections with a fixed number of calls in flight (a closed loop); every answer is
//! checked (see [`load`]). What fails or is wrong is reported and makes the run fail.

mod hpack;
mod http2;
mod load;
mod process;

use std::io::{self, Write};
use std::net::ToSocketAddrs;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

use self::http2::{Connection, Handler};
use self::load::{Call, Figures, KEY_SIZE_MIN, Load, PATHS, Plan, VALUE_HEAD, header_revision};
use self::process::{Usage, own_cpu, usage};
use crate::failure::{self, Failure};
use crate::units::{format_duration, parse_duration, parse_size};

/// How long calls may take that are under way when the time is over.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a lost connection waits before it is made anew.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);
/// Longest wait in one poll.
const POLL_MAX: Duration = Duration::from_millis(100);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Writes only
    Put,
    /// Reads only
    Get,
    /// Both
    Mixed,
    /// Transactions of several puts, each of keys in a row
    Txn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Keys {
    Random,
    Sequential,
}

/// Arguments of `bench`.
#[derive(Args)]
pub struct BenchArgs {
    /// What to measure
    #[arg(value_enum)]
    mode: Mode,
    /// Servers, with commas between; connections are spread over them
    #[arg(
        long,
        env = "KVORUM_ENDPOINTS",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        default_value = "127.0.0.1:2379"
    )]
    endpoints: Vec<String>,
    /// Connections in all
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=1024))]
    connections: u16,
    /// Calls in flight in all
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65536))]
    in_flight: u32,
    /// How many keys there are
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    key_space: u64,
    /// Bytes of a key
    #[arg(long, value_name = "BYTES", default_value_t = 32, value_parser = clap::value_parser!(u16).range(KEY_SIZE_MIN as i64..=4096))]
    key_size: u16,
    /// Bytes of a value
    #[arg(long, value_name = "SIZE", default_value = "256B", value_parser = parse_value_size)]
    value_size: usize,
    /// In which order keys are taken
    #[arg(long, value_enum, default_value_t = Keys::Random)]
    keys: Keys,
    /// How long to measure
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// How long to run before that
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_duration)]
    warmup: Duration,
    /// Share of gets in `mixed`, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u8).range(1..=99))]
    reads: u8,
    /// Puts of one transaction in `txn`
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=128))]
    txn_puts: u64,
    /// Gets see all writes acknowledged before them (the default)
    #[arg(long, conflicts_with = "serializable")]
    linearizable: bool,
    /// Gets ask only the server at hand
    #[arg(long)]
    serializable: bool,
    /// The keys are there from an earlier run: do not write each once before gets
    #[arg(long)]
    no_fill: bool,
    /// Processes whose CPU time and memory are reported
    #[arg(long, value_name = "PID", value_delimiter = ',')]
    pids: Vec<u32>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn parse_value_size(text: &str) -> Result<usize, String> {
    let size = if text.bytes().all(|b| b.is_ascii_digit()) {
        text.parse().ok()
    } else {
        parse_size(text).ok()
    };
    match size {
        Some(size) if (VALUE_HEAD as u64..=1 << 20).contains(&size) => Ok(size as usize),
        _ => Err(format!("`{text}` is not a size between {VALUE_HEAD}B and 1MiB")),
    }
}

/// Runs the bench.
pub fn run(args: BenchArgs) -> Result<(), Failure> {
    for pid in &args.pids {
        usage(*pid).ok_or_else(|| Failure::usage(format!("--pids: there is no process {pid}")))?;
    }
    let plan = Plan {
        key_space: args.key_space,
        key_size: args.key_size.into(),
        value_size: args.value_size,
        read_percent: match args.mode {
            Mode::Put | Mode::Txn => 0,
            Mode::Get => 100,
            Mode::Mixed => args.reads,
        },
        sequential: args.keys == Keys::Sequential,
        serializable: args.serializable,
        txn_puts: if args.mode == Mode::Txn { args.txn_puts } else { 0 },
    };
    if plan.txn_puts > plan.key_space {
        return Err(Failure::usage(
            "--txn-puts is above --key-space: a transaction writes each key once",
        ));
    }
    let mut slots = Vec::new();
    let per_slot = args.in_flight.div_ceil(args.connections.into()) as usize;
    let mut left = args.in_flight as usize;
    for n in 0..usize::from(args.connections) {
        let in_flight_max = per_slot.min(left);
        left -= in_flight_max;
        if in_flight_max > 0 {
            let endpoint = args.endpoints[n % args.endpoints.len()].trim().to_owned();
            slots.push(Slot {
                connection: Some(open(&endpoint)?),
                endpoint,
                in_flight_max,
                retry_at: None,
            });
        }
    }
    let base_revision = current_revision(&args.endpoints[0])?;
    let load = Load::new(plan, base_revision, fastrand::u64(..1 << 31), Instant::now());
    let mut driver = Driver { slots, load };
    if matches!(args.mode, Mode::Get | Mode::Mixed) && !args.no_fill {
        driver.fill()?;
    }
    let measured = driver.measure(args.warmup, Duration::from_secs(args.seconds), &args.pids);
    report(&args, &driver.load, &measured)
}

fn open(endpoint: &str) -> Result<Connection<Call>, Failure> {
    let host_port = endpoint
        .strip_prefix("http://")
        .unwrap_or(endpoint)
        .trim_end_matches('/');
    let address = host_port
        .to_socket_addrs()
        .ok()
        .and_then(|mut all| all.next())
        .ok_or_else(|| {
            Failure::usage(format!(
                "endpoint `{endpoint}` is not an address; write host:port"
            ))
        })?;
    Connection::open(address, host_port, &PATHS).map_err(|error| {
        let what = failure::os(&error);
        Failure::new(
            failure::Code::Unavailable,
            format!("cannot connect to {host_port}: {what}; check --endpoints and that the server runs"),
        )
    })
}

/// The store's revision, by one read; it also shows early whether the server serves.
fn current_revision(endpoint: &str) -> Result<i64, Failure> {
    struct First(Option<Result<i64, String>>);
    impl Handler<Call> for First {
        fn message(&mut self, _: &mut Call, message: &[u8]) {
            self.0 = Some(header_revision(message));
        }
        fn end(&mut self, _: Call, outcome: Result<(), String>) {
            if let Err(text) = outcome {
                self.0 = Some(Err(text));
            }
        }
    }
    let mut connection = open(endpoint)?;
    let mut first = First(None);
    let now = Instant::now();
    // Range of one key that need not exist: `bench`.
    connection.call(1, Call::probe(now), 7, |out| {
        out.extend_from_slice(b"\x0a\x05bench")
    });
    let failed = |what: String| Failure::error(format!("{endpoint} does not answer a read: {what}"));
    while first.0.is_none() || connection.in_flight() > 0 {
        connection.flush().map_err(|error| failed(failure::os(&error)))?;
        let mut fds = [PollFd::from_borrowed_fd(connection.fd(), PollFlags::IN)];
        wait(&mut fds, POLL_MAX);
        connection
            .receive(&mut first)
            .map_err(|error| failed(failure::os(&error)))?;
        if now.elapsed() > DRAIN_TIMEOUT {
            return Err(failed("no answer".to_owned()));
        }
    }
    first.0.expect("the loop waits for it").map_err(failed)
}

fn wait(fds: &mut [PollFd<'_>], at_most: Duration) {
    let timeout = Timespec {
        tv_sec: at_most.as_secs() as i64,
        tv_nsec: at_most.subsec_nanos().into(),
    };
    // An interrupted poll is one that saw nothing.
    let _ = poll(fds, Some(&timeout));
}

/// One place for a connection.
struct Slot {
    endpoint: String,
    in_flight_max: usize,
    connection: Option<Connection<Call>>,
    /// When a lost connection is made anew.
    retry_at: Option<Instant>,
}

struct Driver {
    slots: Vec<Slot>,
    load: Load,
}

/// What was measured between the two ends.
struct Measured {
    elapsed: Duration,
    client_cpu: Duration,
    /// For each process: before and after, if it was there.
    servers: Vec<(u32, Option<(Usage, Usage)>)>,
}

impl Driver {
    /// Writes every key once.
    fn fill(&mut self) -> Result<(), Failure> {
        let mut more = true;
        while more || self.load.in_flight > 0 {
            self.turn(POLL_MAX, |load, connection| {
                more = load.issue_fill(connection);
                more
            });
            if self.load.errors > 0 {
                let text = self.load.error_texts.keys().next().cloned().unwrap_or_default();
                return Err(Failure::error(format!("cannot write the keys to read: {text}")));
            }
        }
        Ok(())
    }

    fn measure(&mut self, warmup: Duration, length: Duration, pids: &[u32]) -> Measured {
        self.run_until(Instant::now() + warmup);
        let before: Vec<Option<Usage>> = pids.iter().map(|pid| usage(*pid)).collect();
        let (start, cpu) = (Instant::now(), own_cpu());
        self.load.counting = true;
        self.run_until(start + length);
        self.load.counting = false;
        let (elapsed, client_cpu) = (start.elapsed(), own_cpu() - cpu);
        let servers = pids
            .iter()
            .zip(before)
            .map(|(pid, before)| (*pid, before.zip(usage(*pid))))
            .collect();
        self.drain();
        Measured {
            elapsed,
            client_cpu,
            servers,
        }
    }

    fn run_until(&mut self, end: Instant) {
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            self.turn(left.min(POLL_MAX), |load, connection| {
                load.issue(connection);
                true
            });
        }
    }

    /// Waits for the calls under way; those that stay unanswered are errors.
    fn drain(&mut self) {
        let end = Instant::now() + DRAIN_TIMEOUT;
        while self.load.in_flight > 0 && Instant::now() < end {
            self.turn(POLL_MAX, |_, _| false);
        }
        for slot in &mut self.slots {
            if let Some(connection) = slot.connection.take() {
                connection.abandon("no answer", &mut self.load);
            }
        }
    }

    /// Fills every connection up, sends, waits, and handles what came.
    fn turn(&mut self, at_most: Duration, mut issue: impl FnMut(&mut Load, &mut Connection<Call>) -> bool) {
        let load = &mut self.load;
        load.now = Instant::now();
        let mut issuing = true;
        for slot in &mut self.slots {
            slot.reconnect(load);
            let Some(connection) = &mut slot.connection else {
                continue;
            };
            while issuing && connection.in_flight() < slot.in_flight_max && !connection.is_going_away() {
                issuing = issue(load, connection);
            }
            slot.step(load, Connection::flush);
        }
        let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(self.slots.len());
        for connection in self.slots.iter().filter_map(|slot| slot.connection.as_ref()) {
            let write = if connection.wants_write() {
                PollFlags::OUT
            } else {
                PollFlags::empty()
            };
            fds.push(PollFd::from_borrowed_fd(connection.fd(), PollFlags::IN | write));
        }
        wait(&mut fds, at_most);
        let readable: Vec<bool> = fds
            .iter()
            .map(|fd| !(fd.revents() - PollFlags::OUT).is_empty())
            .collect();
        drop(fds);
        let mut readable = readable.into_iter();
        for slot in &mut self.slots {
            if slot.connection.is_some() && readable.next().expect("one for each connection") {
                slot.receive(load);
            }
        }
    }
}

impl Slot {
    /// Does something with the connection; if that breaks it, its calls are errors.
    fn step(&mut self, load: &mut Load, act: impl FnOnce(&mut Connection<Call>) -> io::Result<()>) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        if let Err(error) = act(connection) {
            self.lose(load, &failure::os(&error));
        }
    }

    fn receive(&mut self, load: &mut Load) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        load.now = Instant::now();
        if let Err(error) = connection.receive(load) {
            self.lose(load, &failure::os(&error));
        }
    }

    fn lose(&mut self, load: &mut Load, reason: &str) {
        let Some(connection) = self.connection.take() else {
            return;
        };
        let reason = format!("{}: {reason}", self.endpoint);
        if connection.in_flight() == 0 {
            load.fail(reason.clone());
        }
        connection.abandon(&reason, load);
        self.retry_at = Some(load.now + RECONNECT_PAUSE);
    }

    fn reconnect(&mut self, load: &mut Load) {
        if self
            .connection
            .as_ref()
            .is_some_and(|c| c.is_going_away() && c.in_flight() == 0)
        {
            self.connection = None;
        }
        if self.connection.is_some() || self.retry_at.is_some_and(|at| load.now < at) {
            return;
        }
        match open(&self.endpoint) {
            Ok(connection) => {
                self.connection = Some(connection);
                self.retry_at = None;
            }
            Err(failure) => {
                load.fail(failure.to_string());
                self.retry_at = Some(Instant::now() + RECONNECT_PAUSE);
            }
        }
    }
}

fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1000.0
}

fn per_op(cpu: Duration, ops: u64) -> f64 {
    cpu.as_secs_f64() * 1e6 / ops.max(1) as f64
}

fn figures_json(figures: &Figures, elapsed: Duration) -> Value {
    let at = |quantile: f64| micros(figures.latency.value_at_quantile(quantile));
    json!({
        "ops": figures.done,
        "ops_per_second": figures.done as f64 / elapsed.as_secs_f64(),
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

fn report(args: &BenchArgs, load: &Load, measured: &Measured) -> Result<(), Failure> {
    let puts_of_call = if args.mode == Mode::Txn { args.txn_puts } else { 1 };
    let ops = load.puts.done * puts_of_call + load.gets.done;
    let seconds = measured.elapsed.as_secs_f64();
    let server = |(pid, usage): &(u32, Option<(Usage, Usage)>)| match usage {
        Some((before, after)) => {
            let cpu = after.cpu.saturating_sub(before.cpu);
            json!({
                "pid": pid,
                "cpu_seconds": cpu.as_secs_f64(),
                "cpu_us_per_op": per_op(cpu, ops),
                "rss_bytes": after.rss,
            })
        }
        None => json!({"pid": pid, "error": "it ended"}),
    };
    let servers: Vec<Value> = measured.servers.iter().map(server).collect();
    let write = if args.mode == Mode::Txn { "txn" } else { "put" };
    let kinds: Vec<(&str, &Figures)> = [(write, &load.puts), ("get", &load.gets)]
        .into_iter()
        .filter(|(_, figures)| figures.done > 0)
        .collect();
    let mut out = crate::verbs::Output::start();
    if args.json {
        let mut line = json!({
            "mode": args.mode.to_possible_value().map(|value| value.get_name().to_owned()),
            "endpoints": args.endpoints,
            "connections": args.connections,
            "in_flight": args.in_flight,
            "key_space": args.key_space,
            "key_size": args.key_size,
            "value_size": args.value_size,
            "ops_per_call": puts_of_call,
            "linearizable": !args.serializable,
            "seconds": seconds,
            "ops": ops,
            "ops_per_second": ops as f64 / seconds,
            "errors": load.errors,
            "error_texts": load.error_texts,
            "client_cpu_seconds": measured.client_cpu.as_secs_f64(),
            "client_cpu_us_per_op": per_op(measured.client_cpu, ops),
            "servers": servers,
        });
        for (kind, figures) in &kinds {
            line[kind] = figures_json(figures, measured.elapsed);
        }
        out.json(&line)?;
    } else {
        for (kind, figures) in &kinds {
            let shown = |nanos: u64| format_duration(Duration::from_micros(nanos.div_ceil(1000)));
            let at = |quantile: f64| shown(figures.latency.value_at_quantile(quantile));
            writeln!(
                out,
                "{kind}: {:.0}/s  p50 {}  p99 {}  p99.9 {}  max {}  ({} in {seconds:.1} s)",
                figures.done as f64 / seconds,
                at(0.5),
                at(0.99),
                at(0.999),
                shown(figures.latency.max()),
                figures.done,
            )?;
        }
        if args.mode == Mode::Txn {
            writeln!(out, "puts: {:.0}/s, {puts_of_call} in each", ops as f64 / seconds)?;
        }
        let cpu = per_op(measured.client_cpu, ops);
        writeln!(out, "client: {cpu:.1} us CPU an operation")?;
        for server in &servers {
            match server["cpu_us_per_op"].as_f64() {
                Some(cpu) => writeln!(
                    out,
                    "process {}: {cpu:.1} us CPU an operation, {} MiB resident",
                    server["pid"],
                    server["rss_bytes"].as_u64().unwrap_or(0) >> 20,
                )?,
                None => writeln!(out, "process {}: it ended", server["pid"])?,
            }
        }
        for (text, count) in &load.error_texts {
            writeln!(out, "error, {count} times: {text}")?;
        }
    }
    out.end()?;
    if load.errors > 0 {
        return Err(Failure::error(format!(
            "{} calls failed or were answered wrongly",
            load.errors
        )));
    }
    if ops == 0 {
        return Err(Failure::error("no call was answered in time"));
    }
    Ok(())
}
