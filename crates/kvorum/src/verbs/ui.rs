//! `ui`: the web console on a port of its own.

use clap::Args;
use kvorum_server::console::ui::Ui;
use kvorum_server::{Address, http};

use crate::demo::Signals;
use crate::failure::{self, Failure};

/// Arguments of `ui`.
#[derive(Args)]
#[command(after_help = "Every member serves the same page under /console/ on its client port.")]
pub struct UiArgs {
    /// Where the page is served
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:3000")]
    listen: String,
    /// Members, with commas between: where they speak HTTP
    #[arg(
        long,
        env = "KVORUM_ENDPOINTS",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        default_value = "127.0.0.1:2379"
    )]
    endpoints: Vec<String>,
    /// Show only the given endpoints, not the other members that they know
    #[arg(long)]
    only: bool,
    /// Serve where other machines can reach it: whoever can, writes through it, and nothing is encrypted
    #[arg(long)]
    allow_plaintext: bool,
}

/// Serves until a signal.
pub async fn run(args: UiArgs) -> Result<(), Failure> {
    let listen: Address = address("--listen", &args.listen)?;
    if !args.allow_plaintext && !listen.is_loopback() {
        return Err(Failure::usage(format!(
            "--listen {listen} can be reached from other machines without encryption, and passes their writes on; \
             listen on 127.0.0.1, or add --allow-plaintext if the network is trusted"
        )));
    }
    let endpoints = args
        .endpoints
        .iter()
        .map(|text| text.trim())
        .filter(|text| !text.is_empty())
        .map(|text| Ok(address("--endpoints", text.strip_prefix("http://").unwrap_or(text))?.to_string()))
        .collect::<Result<Vec<_>, Failure>>()?;
    if endpoints.is_empty() {
        return Err(Failure::usage(
            "no endpoint is given; name a member with --endpoints HOST:PORT",
        ));
    }
    let mut signals = Signals::new()?;
    let listener = http::listen("listen", &listen).map_err(Failure::error)?;
    let server = Ui::new(endpoints, !args.only)
        .start(listener)
        .map_err(|error| Failure::error(format!("cannot start: {}", failure::os(&error))))?;
    for address in server.addresses() {
        println!("the console: http://{address}/ (Ctrl-C ends it)");
    }
    signals.next().await;
    Ok(())
}

fn address(option: &str, text: &str) -> Result<Address, Failure> {
    text.trim_end_matches('/')
        .parse()
        .map_err(|error| Failure::usage(format!("{option}: {error}")))
}
