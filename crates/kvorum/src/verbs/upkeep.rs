//! `alarm` and `compact`: what an operator does about space.

use clap::{Args, Subcommand};
use kvorum_client::proto::etcd::AlarmMember;
use serde_json::json;

use super::record::revision;
use super::{ClientArgs, LONG_TIMEOUT, Output, TIMEOUT, revision_failure};
use crate::failure::Failure;

/// Arguments of `alarm`.
#[derive(Args)]
pub struct AlarmArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List the alarms that stand, and on which member
    List {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Disarm all alarms, and list those that stood
    Disarm {
        #[command(flatten)]
        client: ClientArgs,
    },
}

impl AlarmArgs {
    /// How to reach the cluster.
    pub fn client(&self) -> &ClientArgs {
        match &self.action {
            Action::List { client } | Action::Disarm { client } => client,
        }
    }
}

/// Carries an `alarm` command out.
pub async fn alarm(args: AlarmArgs) -> Result<(), Failure> {
    let client = args.client().client(TIMEOUT)?;
    let mut answer = client.alarms().await?;
    if matches!(args.action, Action::Disarm { .. }) {
        for alarm in std::mem::take(&mut answer.alarms) {
            answer.alarms.extend(client.disarm(alarm).await?.alarms);
        }
    }
    let mut out = Output::start();
    let shown = |alarm: &AlarmMember| (format!("{:016x}", alarm.member_id), alarm.alarm().as_str_name());
    match args.client().json() {
        true => {
            let alarm = |alarm| {
                let (member, name) = shown(alarm);
                json!({"member": member, "alarm": name})
            };
            let alarms: Vec<_> = answer.alarms.iter().map(alarm).collect();
            out.json(&json!({"revision": revision(answer.header.as_ref()), "alarms": alarms}))?;
        }
        false => {
            for alarm in &answer.alarms {
                let (member, name) = shown(alarm);
                out.pair(member.as_bytes(), name.as_bytes())?;
            }
        }
    }
    out.end()
}

/// Arguments of `compact`.
#[derive(Args)]
pub struct CompactArgs {
    /// Forget what was overwritten or deleted before this revision
    #[arg(value_parser = clap::value_parser!(i64).range(1..))]
    revision: i64,
    /// Answer when it is gone from the disk, too
    #[arg(long)]
    physical: bool,
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Forgets history.
pub async fn compact(args: CompactArgs) -> Result<(), Failure> {
    let client = args.client.client(LONG_TIMEOUT)?;
    let compacted = args.revision;
    let answer = match client.compact(compacted, args.physical).await {
        Ok(answer) => answer,
        Err(error) => return Err(revision_failure(&client, compacted, error).await),
    };
    let mut out = Output::start();
    match args.client.json() {
        true => out.json(&json!({"revision": revision(answer.header.as_ref()), "compacted": compacted}))?,
        false => out.line(b"OK")?,
    }
    out.end()
}
