//! `send`: random pairs, written to the leader.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use kvorum_client::proto::v1::Role;
use kvorum_client::{Client, Error};
use serde_json::json;
use tokio::task::JoinSet;

use super::status::{self, Answer};
use super::{ClientArgs, LONG_TIMEOUT};
use crate::failure::Failure;
use crate::units::format_duration;

/// How long members may take to say who leads.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// Where there is no terminal, progress is told so often in all.
const LINES: u64 = 10;

/// Arguments of `send`.
#[derive(Args)]
pub struct SendArgs {
    /// How many pairs
    #[arg(value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pairs: u64,
    /// Writes in flight
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    in_flight: u16,
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Writes the pairs.
pub async fn run(args: SendArgs) -> Result<(), Failure> {
    // Any member takes writes; the leader saves the way.
    let answers = status::ask(
        args.client.endpoints.clone(),
        args.client.credentials()?,
        ASK_TIMEOUT,
    )
    .await?;
    let order = leader_first(&answers, &args.client.endpoints);
    let leader = order.first().cloned().unwrap_or_default();
    let client = ClientArgs {
        endpoints: order,
        ..args.client.clone()
    }
    .client(LONG_TIMEOUT)?;
    let progress = Progress::of(args.pairs);
    let started = Instant::now();
    let mut running: JoinSet<Result<(), Error>> = JoinSet::new();
    let (mut begun, mut written) = (0, 0);
    while written < args.pairs {
        while begun < args.pairs && running.len() < args.in_flight.into() {
            running.spawn(write_one(client.clone()));
            begun += 1;
        }
        let done = running.join_next().await.expect("some are in flight");
        let done = done.map_err(|error| Failure::error(format!("a write ended early: {error}")))?;
        if let Err(error) = done {
            progress.end();
            let context = format!("stopped, {written} of {} pairs written, perhaps more", args.pairs);
            return Err(Failure::from(error).context(&context));
        }
        written += 1;
        progress.tell(written);
    }
    progress.end();
    let elapsed = started.elapsed();
    if args.client.json() {
        println!(
            "{}",
            json!({"pairs": written, "leader": leader, "seconds": elapsed.as_secs_f64()})
        );
    } else {
        let rate = written as f64 / elapsed.as_secs_f64().max(1e-6);
        let took = format_duration(Duration::from_millis(elapsed.as_millis() as u64));
        println!("{written} pairs written through {leader} in {took}, {rate:.0} a second");
    }
    Ok(())
}

async fn write_one(client: Client) -> Result<(), Error> {
    let random = || format!("{:016x}", fastrand::u64(..));
    client.put(random(), random()).await.map(drop)
}

/// The endpoints, that of the leader before the others.
fn leader_first(answers: &[Answer], endpoints: &[String]) -> Vec<String> {
    let leads = |answer: &&Answer| {
        let status = answer.status.as_ref();
        status.is_ok_and(|status| status.role() == Role::Leader && status.majority_contact)
    };
    let leader = answers.iter().find(leads).map(|answer| answer.endpoint.clone());
    let others = endpoints
        .iter()
        .filter(|endpoint| Some(*endpoint) != leader.as_ref());
    leader.iter().chain(others).cloned().collect()
}

/// A bar for people, lines for a log.
struct Progress {
    total: u64,
    bar: ProgressBar,
}

impl Progress {
    fn of(total: u64) -> Progress {
        let bar = match std::io::stderr().is_terminal() {
            true => {
                let style = ProgressStyle::with_template("{bar:40} {pos}/{len} pairs  {eta} left")
                    .expect("the template is well-formed");
                ProgressBar::new(total).with_style(style)
            }
            false => ProgressBar::hidden(),
        };
        Progress { total, bar }
    }

    fn tell(&self, written: u64) {
        self.bar.set_position(written);
        let tenth = |written: u64| u128::from(written) * u128::from(LINES) / u128::from(self.total);
        if self.bar.is_hidden() && tenth(written) > tenth(written - 1) {
            eprintln!("{written} of {} pairs written", self.total);
        }
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}
