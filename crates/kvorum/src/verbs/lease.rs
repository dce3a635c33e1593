//! `lease`: grant, revoke, keep-alive, ttl, list.

use std::time::Duration;

use clap::{Args, Subcommand};
use kvorum_client::Client;
use serde_json::json;

use super::record::{ExportLine, revision};
use super::{ClientArgs, Output, TIMEOUT};
use crate::failure::Failure;

/// Arguments of `lease`.
#[derive(Args)]
pub struct LeaseArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Make a lease; `put --lease ID` attaches keys to it
    Grant {
        /// How many seconds it lives without a renewal; the cluster raises less than its least
        #[arg(value_parser = clap::value_parser!(i64).range(1..=9_000_000_000))]
        ttl: i64,
        /// This ID, hexadecimal, and not one that is free
        #[arg(long, value_parser = parse_id)]
        id: Option<i64>,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// End a lease and delete its keys
    Revoke {
        /// Its ID, hexadecimal
        #[arg(value_parser = parse_id)]
        id: i64,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Renew a lease until interrupted
    KeepAlive {
        /// Its ID, hexadecimal
        #[arg(value_parser = parse_id)]
        id: i64,
        /// Renew it once, and end
        #[arg(long)]
        once: bool,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show how long a lease lives
    Ttl {
        /// Its ID, hexadecimal
        #[arg(value_parser = parse_id)]
        id: i64,
        /// Also list its keys
        #[arg(long)]
        keys: bool,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// List the leases
    List {
        #[command(flatten)]
        client: ClientArgs,
    },
}

impl LeaseArgs {
    /// How to reach the cluster.
    pub fn client(&self) -> &ClientArgs {
        match &self.action {
            Action::Grant { client, .. }
            | Action::Revoke { client, .. }
            | Action::KeepAlive { client, .. }
            | Action::Ttl { client, .. }
            | Action::List { client } => client,
        }
    }
}

/// A lease's ID as `lease grant` prints it: the sixteen digits of its 64 bits, or fewer.
pub fn parse_id(text: &str) -> Result<i64, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    match u64::from_str_radix(digits, 16) {
        Ok(id) if plain && id != 0 => Ok(id as i64),
        _ => Err(format!("`{text}` is not a lease ID in hexadecimal")),
    }
}

fn hex(id: i64) -> String {
    format!("{id:016x}")
}

/// Carries a `lease` command out.
pub async fn run(args: LeaseArgs) -> Result<(), Failure> {
    let json = args.client().json();
    let client = args.client().client(TIMEOUT)?;
    let mut out = Output::start();
    match args.action {
        Action::Grant { ttl, id, .. } => {
            let granted = client.lease_grant(ttl, id.unwrap_or(0)).await?;
            let id = hex(granted.id);
            match json {
                true => {
                    out.json(
                        &json!({"revision": revision(granted.header.as_ref()), "id": id, "ttl": granted.ttl}),
                    )?;
                }
                false => out.pair(id.as_bytes(), format!("{}s", granted.ttl).as_bytes())?,
            }
        }
        Action::Revoke { id, .. } => {
            let revoked = client.lease_revoke(id).await?;
            if json {
                out.json(&json!({"revision": revision(revoked.header.as_ref()), "id": hex(id)}))?;
            }
        }
        Action::KeepAlive { id, once, .. } => keep_alive(&client, &mut out, json, id, once).await?,
        Action::Ttl { id, keys, .. } => ttl(&client, &mut out, json, id, keys).await?,
        Action::List { .. } => {
            let found = client.leases().await?;
            let ids: Vec<String> = found.leases.iter().map(|lease| hex(lease.id)).collect();
            match json {
                true => out.json(&json!({"revision": revision(found.header.as_ref()), "leases": ids}))?,
                false => ids.iter().try_for_each(|id| out.line(id.as_bytes()))?,
            }
        }
    }
    out.end()
}

/// Renews three times in each TTL.
async fn keep_alive(
    client: &Client,
    out: &mut Output,
    json: bool,
    id: i64,
    once: bool,
) -> Result<(), Failure> {
    loop {
        let renewed = client.lease_keep_alive(id).await?;
        if renewed.ttl <= 0 {
            return Err(gone(id));
        }
        match json {
            true => out.json(&json!({"id": hex(id), "ttl": renewed.ttl}))?,
            false => out.pair(hex(id).as_bytes(), format!("{}s", renewed.ttl).as_bytes())?,
        }
        out.flush()?;
        if once {
            return Ok(());
        }
        let ttl_ms = u64::try_from(renewed.ttl).unwrap_or(0).saturating_mul(1000);
        tokio::time::sleep(Duration::from_millis(ttl_ms / 3)).await;
    }
}

async fn ttl(client: &Client, out: &mut Output, json: bool, id: i64, with_keys: bool) -> Result<(), Failure> {
    let lease = client.lease_time_to_live(id, with_keys).await?;
    if lease.ttl < 0 {
        return Err(gone(id));
    }
    if json {
        let mut line = json!({"id": hex(id), "ttl": lease.ttl, "granted_ttl": lease.granted_ttl});
        if with_keys {
            let keys: Vec<_> = lease
                .keys
                .iter()
                .map(|key| {
                    let ExportLine { key, key_b64, .. } = ExportLine::new(key, b"");
                    match key {
                        Some(key) => json!({"key": key}),
                        None => json!({"key_b64": key_b64}),
                    }
                })
                .collect();
            line["keys"] = json!(keys);
        }
        return out.json(&line);
    }
    let lives = format!("{}s of {}s", lease.ttl, lease.granted_ttl);
    out.pair(hex(id).as_bytes(), lives.as_bytes())?;
    lease.keys.iter().try_for_each(|key| out.line(key))
}

fn gone(id: i64) -> Failure {
    Failure::error(format!("there is no lease {}: it ended, or never was", hex(id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_hexadecimal() {
        assert_eq!(parse_id("694d77aa9e38260f"), Ok(0x694d_77aa_9e38_260f));
        assert_eq!(parse_id("0x7b"), Ok(123));
        assert_eq!(parse_id("ffffffffffffffff"), Ok(-1));
        assert_eq!(hex(-1), "ffffffffffffffff");
        for bad in ["", "0", "+7", "g", "-1", "10000000000000000"] {
            assert!(parse_id(bad).is_err(), "{bad}");
        }
    }
}
