//! `bench`: a load generator over unary etcd gRPC that costs little itself, so that it measures the servers.
//!
//! One thread drives all connections with a fixed number of calls in flight (a closed loop); every answer is
//! checked (see [`load`]). What fails or is wrong is reported and makes the run fail.

mod hpack;
mod http2;
mod load;
mod message;
mod process;
mod report;
mod watch;

use std::io;
use std::net::ToSocketAddrs;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;

use self::http2::{Connection, Handler};
use self::load::{AUTHENTICATE, Call, Kind, Load, PATHS, Plan, RANGE};
use self::message::{KEY_SIZE_MIN, VALUE_HEAD, delimited, header_revision, text_field};
use self::process::usage;
use self::report::{Measured, Measuring, Report};
use crate::failure::{self, Failure};
use crate::units::{parse_duration, parse_size};
use crate::verbs::password::{UserArg, parse_user};

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
    /// Reads of several keys in a row
    Range,
    /// Grants of leases, and keep-alives of those granted
    Lease,
    /// Events at many watchers, while puts go on at a fixed rate
    Watch,
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
    /// Who asks, where authentication is on; without a password it is read from standard input. It needs to read and
    /// write below `bench/`
    #[arg(
        long,
        env = "KVORUM_USER",
        hide_env_values = true,
        value_name = "NAME[:PASSWORD]",
        value_parser = parse_user
    )]
    user: Option<UserArg>,
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
    /// Share of gets in `mixed`, of keep-alives in `lease`, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    reads: u8,
    /// Puts of one transaction in `txn`
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=128))]
    txn_puts: u64,
    /// Keys of one read in `range`
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    range_keys: u64,
    /// Watchers in `watch`, spread over the connections, each connection with one stream
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    watchers: u32,
    /// Puts a second in `watch`
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// In `watch`, each watcher has a prefix of its own, instead of all one key
    #[arg(long)]
    distinct: bool,
    /// In `watch`, this many further watchers of everything that never read what they are sent
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=1024))]
    stalled: u16,
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

impl BenchArgs {
    fn plan(&self) -> Plan {
        let (write, read) = match self.mode {
            Mode::Txn => (Kind::Txn, Kind::Range),
            Mode::Lease => (Kind::LeaseGrant, Kind::LeaseKeepAlive),
            Mode::Put | Mode::Get | Mode::Mixed | Mode::Range | Mode::Watch => (Kind::Put, Kind::Range),
        };
        Plan {
            write,
            read,
            read_percent: match self.mode {
                Mode::Put | Mode::Txn | Mode::Watch => 0,
                Mode::Get | Mode::Range => 100,
                Mode::Mixed | Mode::Lease => self.reads,
            },
            keys_written: if self.mode == Mode::Txn { self.txn_puts } else { 1 },
            keys_read: if self.mode == Mode::Range {
                self.range_keys
            } else {
                1
            },
            key_space: self.key_space,
            key_size: self.key_size.into(),
            value_size: self.value_size,
            sequential: self.keys == Keys::Sequential,
            serializable: self.serializable,
            // They end by themselves soon after the run.
            lease_ttl_s: self.seconds + 120,
        }
    }

    fn mode_name(&self) -> String {
        let value = self.mode.to_possible_value().expect("every mode has a name");
        value.get_name().to_owned()
    }
}

/// Runs the bench.
pub fn run(args: BenchArgs) -> Result<(), Failure> {
    for pid in &args.pids {
        usage(*pid).ok_or_else(|| Failure::usage(format!("--pids: there is no process {pid}")))?;
    }
    let token = log_in(&args)?;
    if args.mode == Mode::Watch {
        return watch::run(&args, token.as_deref());
    }
    let plan = args.plan();
    for (option, keys) in [
        ("--txn-puts", plan.keys_written),
        ("--range-keys", plan.keys_read),
    ] {
        if keys > plan.key_space {
            return Err(Failure::usage(format!(
                "{option} is above --key-space: a call takes each key once"
            )));
        }
    }
    let (keys_written, keys_read) = (plan.keys_written, plan.keys_read);
    let keys_of_call = keys_written.max(keys_read);
    let (write, read) = match args.mode {
        Mode::Txn => ("txn", "get"),
        Mode::Range => ("put", "range"),
        Mode::Lease => ("lease_grant", "lease_keep_alive"),
        Mode::Put | Mode::Get | Mode::Mixed | Mode::Watch => ("put", "get"),
    };
    let mut slots = Vec::new();
    let per_slot = args.in_flight.div_ceil(args.connections.into()) as usize;
    let mut left = args.in_flight as usize;
    for n in 0..usize::from(args.connections) {
        let in_flight_max = per_slot.min(left);
        left -= in_flight_max;
        if in_flight_max > 0 {
            let endpoint = args.endpoints[n % args.endpoints.len()].trim().to_owned();
            slots.push(Slot {
                connection: Some(open(&endpoint, token.as_deref())?),
                endpoint,
                token: token.clone(),
                in_flight_max,
                retry_at: None,
            });
        }
    }
    let base_revision = current_revision(&args.endpoints[0], token.as_deref())?;
    let load = Load::new(plan, base_revision, fastrand::u64(..1 << 31), Instant::now());
    let mut driver = Driver { slots, load };
    if matches!(args.mode, Mode::Get | Mode::Mixed | Mode::Range) && !args.no_fill {
        driver.fill()?;
    }
    let measured = driver.measure(args.warmup, Duration::from_secs(args.seconds), &args.pids);
    let load = driver.load;
    let kinds = [(write, &load.writes), (read, &load.reads)];
    Report {
        setting: json!({
            "mode": args.mode_name(),
            "endpoints": args.endpoints,
            "connections": args.connections,
            "in_flight": args.in_flight,
            "key_space": args.key_space,
            "key_size": args.key_size,
            "value_size": args.value_size,
            "ops_per_call": keys_of_call,
            "linearizable": !args.serializable,
        }),
        kinds: kinds
            .into_iter()
            .filter(|(_, figures)| figures.done > 0)
            .collect(),
        in_each: (keys_of_call > 1).then_some(("keys", keys_of_call)),
        ops: load.writes.done * keys_written + load.reads.done * keys_read,
        errors: &load.errors,
        measured: &measured,
    }
    .print(args.json)
}

/// A connection whose calls carry the token.
fn open<C>(endpoint: &str, token: Option<&str>) -> Result<Connection<C>, Failure> {
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
    Connection::open(address, host_port, token, &PATHS).map_err(|error| {
        let what = failure::os(&error);
        Failure::new(
            failure::Code::Unavailable,
            format!("cannot connect to {host_port}: {what}; check --endpoints and that the server runs"),
        )
    })
}

/// The answer to one unary call on a connection of its own, or why there is none.
fn ask(
    endpoint: &str,
    token: Option<&str>,
    path: usize,
    message: &[u8],
) -> Result<Result<Vec<u8>, String>, Failure> {
    #[derive(Default)]
    struct First(Option<Result<Vec<u8>, String>>);
    impl Handler<()> for First {
        fn message(&mut self, _: &mut (), message: &[u8]) {
            self.0 = Some(Ok(message.to_vec()));
        }
        fn end(&mut self, _: (), outcome: Result<(), String>) {
            if let Err(text) = outcome {
                self.0 = Some(Err(text));
            }
        }
    }
    let mut connection = open(endpoint, token)?;
    let (mut first, started) = (First::default(), Instant::now());
    connection.call(path, (), message.len(), |out| out.extend_from_slice(message));
    let failed = |what: String| Failure::error(format!("{endpoint} does not answer: {what}"));
    while connection.in_flight() > 0 {
        connection.flush().map_err(|error| failed(failure::os(&error)))?;
        let mut fds = [PollFd::from_borrowed_fd(connection.fd(), PollFlags::IN)];
        wait(&mut fds, POLL_MAX);
        connection
            .receive(&mut first)
            .map_err(|error| failed(failure::os(&error)))?;
        if started.elapsed() > DRAIN_TIMEOUT {
            return Err(failed("no answer".to_owned()));
        }
    }
    Ok(first.0.expect("a call that is over was answered or failed"))
}

/// A token for the user; `None` if nobody has to log in. It is asked for once: a server that starts anew during the run
/// does not know it.
fn log_in(args: &BenchArgs) -> Result<Option<String>, Failure> {
    let Some(user) = &args.user else { return Ok(None) };
    let endpoint = args.endpoints[0].trim();
    let name = delimited(1, user.name().as_bytes());
    let request = [name, delimited(2, user.password()?.as_bytes())].concat();
    let failed = |what: String| Failure::error(format!("cannot log in at {endpoint}: {what}"));
    match ask(endpoint, None, AUTHENTICATE, &request)? {
        Ok(answer) => text_field(&answer, 2).map(Some).map_err(failed),
        Err(text) if text.contains("authentication is not enabled") => Ok(None),
        Err(text) => Err(failed(text)),
    }
}

/// The store's revision, by one read; it also shows early whether the server serves.
fn current_revision(endpoint: &str, token: Option<&str>) -> Result<i64, Failure> {
    // A key that need not exist, below those of the bench: who may use them may read it.
    let answer = ask(endpoint, token, RANGE, &delimited(1, b"bench/"))?;
    let revision = answer.and_then(|answer| header_revision(&answer));
    revision.map_err(|what| Failure::error(format!("{endpoint} does not answer a read: {what}")))
}

fn wait(fds: &mut [PollFd<'_>], at_most: Duration) {
    let timeout = Timespec {
        tv_sec: at_most.as_secs() as i64,
        tv_nsec: at_most.subsec_nanos().into(),
    };
    // An interrupted poll is one that saw nothing.
    let _ = poll(fds, Some(&timeout));
}

/// Waits until a connection can go on, or for this long; which of them have something to read, in their order.
fn await_answers<'a, C: 'a>(
    connections: impl Iterator<Item = &'a Connection<C>>,
    at_most: Duration,
) -> Vec<bool> {
    let polled = |connection: &Connection<C>| match connection.wants_write() {
        true => PollFlags::IN | PollFlags::OUT,
        false => PollFlags::IN,
    };
    let mut fds: Vec<PollFd<'_>> = connections
        .map(|connection| PollFd::from_borrowed_fd(connection.fd(), polled(connection)))
        .collect();
    wait(&mut fds, at_most);
    fds.iter()
        .map(|fd| !(fd.revents() - PollFlags::OUT).is_empty())
        .collect()
}

/// One place for a connection.
struct Slot {
    endpoint: String,
    token: Option<String>,
    in_flight_max: usize,
    connection: Option<Connection<Call>>,
    /// When a lost connection is made anew.
    retry_at: Option<Instant>,
}

struct Driver {
    slots: Vec<Slot>,
    load: Load,
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
            if let Some(text) = self.load.errors.texts().next() {
                return Err(Failure::error(format!("cannot write the keys to read: {text}")));
            }
        }
        Ok(())
    }

    fn measure(&mut self, warmup: Duration, length: Duration, pids: &[u32]) -> Measured {
        self.run_until(Instant::now() + warmup);
        let measuring = Measuring::start(pids);
        self.load.counting = true;
        self.run_until(Instant::now() + length);
        self.load.counting = false;
        let measured = measuring.end();
        self.drain();
        measured
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
        let connections = self.slots.iter().filter_map(|slot| slot.connection.as_ref());
        let readable = await_answers(connections, at_most);
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
            load.errors.note(reason.clone());
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
        match open(&self.endpoint, self.token.as_deref()) {
            Ok(connection) => {
                self.connection = Some(connection);
                self.retry_at = None;
            }
            Err(failure) => {
                load.errors.note(failure.to_string());
                self.retry_at = Some(Instant::now() + RECONNECT_PAUSE);
            }
        }
    }
}
