//! `member`: who belongs to the cluster, and changes of that.

use clap::{Args, Subcommand};
use kvorum_client::proto::v1::{self, Suffrage};
use serde_json::{Value, json};

use super::status::aligned;
use super::{ClientArgs, LONG_TIMEOUT, Output};
use crate::failure::Failure;

/// Arguments of `member`.
#[derive(Args)]
pub struct MemberArgs {
    #[command(subcommand)]
    command: MemberCommand,
}

#[derive(Subcommand)]
enum MemberCommand {
    /// List the members
    List {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Announce a new member, which starts as a learner
    Add {
        /// Its name
        name: String,
        /// Where the other members will reach it
        #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', required = true)]
        peer: Vec<String>,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Make a learner that caught up a voter
    Promote {
        /// Its name, or its ID in hexadecimal
        member: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Remove a member for good
    Remove {
        /// Its name, or its ID in hexadecimal
        member: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Replace a member that lost its data by a new one, which is then started with `serve --join`
    Replace {
        /// Name or ID of the lost member
        member: String,
        /// Name of the new one [default: that of the lost one]
        #[arg(long)]
        name: Option<String>,
        /// Where the others will reach it [default: as the lost one]
        #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
        peer: Vec<String>,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Hand leadership to another member
    Lead {
        /// Its name or ID [default: the fittest]
        member: Option<String>,
        #[command(flatten)]
        client: ClientArgs,
    },
}

impl MemberArgs {
    /// How to reach the cluster.
    pub fn client(&self) -> &ClientArgs {
        match &self.command {
            MemberCommand::List { client }
            | MemberCommand::Add { client, .. }
            | MemberCommand::Promote { client, .. }
            | MemberCommand::Remove { client, .. }
            | MemberCommand::Replace { client, .. }
            | MemberCommand::Lead { client, .. } => client,
        }
    }
}

/// An ID as it is printed: too long a number for many readers of JSON.
pub fn id(id: u64) -> String {
    format!("{id:016x}")
}

/// A name, or an ID as `member list` prints it: 16 hexadecimal digits.
fn selector(text: &str) -> v1::MemberSelector {
    match u64::from_str_radix(text, 16) {
        Ok(id) if text.len() == 16 => v1::MemberSelector {
            id,
            name: String::new(),
        },
        _ => v1::MemberSelector {
            id: 0,
            name: text.to_owned(),
        },
    }
}

/// Lists or changes the members.
pub async fn run(args: MemberArgs) -> Result<(), Failure> {
    match args.command {
        MemberCommand::List { client } => {
            let answer = client.client(LONG_TIMEOUT)?.members().await?;
            print(&client, &answer.members, answer.leader_id, None)
        }
        MemberCommand::Add { name, peer, client } => {
            let request = v1::MemberAddRequest {
                name,
                peer_addresses: peer,
            };
            let answer = client.client(LONG_TIMEOUT)?.member_add(request).await?;
            print(&client, &answer.members, 0, answer.member.as_ref())
        }
        MemberCommand::Promote { member, client } => {
            let answer = client
                .client(LONG_TIMEOUT)?
                .member_promote(selector(&member))
                .await?;
            print(&client, &answer.members, 0, None)
        }
        MemberCommand::Remove { member, client } => {
            let answer = client
                .client(LONG_TIMEOUT)?
                .member_remove(selector(&member))
                .await?;
            print(&client, &answer.members, 0, None)
        }
        MemberCommand::Replace {
            member,
            name,
            peer,
            client,
        } => {
            let request = v1::MemberReplaceRequest {
                member: Some(selector(&member)),
                name: name.unwrap_or_default(),
                peer_addresses: peer,
            };
            let answer = client.client(LONG_TIMEOUT)?.member_replace(request).await?;
            print(&client, &answer.members, 0, answer.member.as_ref())?;
            if let (false, Some(member)) = (client.json(), &answer.member) {
                eprintln!(
                    "now start {} on an empty data directory with `kvorum serve --join`",
                    member.name
                );
            }
            Ok(())
        }
        MemberCommand::Lead { member, client } => {
            let to = member.as_deref().map(selector);
            let answer = client.client(LONG_TIMEOUT)?.transfer_leadership(to).await?;
            let mut out = Output::start();
            match client.json() {
                true => out.json(&json!({"leader_id": id(answer.leader_id)}))?,
                false => out.line(format!("{} leads", id(answer.leader_id)).as_bytes())?,
            }
            out.end()
        }
    }
}

fn print(
    client: &ClientArgs,
    members: &[v1::Member],
    leader_id: u64,
    changed: Option<&v1::Member>,
) -> Result<(), Failure> {
    let mut out = Output::start();
    if client.json() {
        let members: Vec<Value> = members.iter().map(to_json).collect();
        let mut line = json!({"members": members});
        if leader_id != 0 {
            line["leader_id"] = json!(id(leader_id));
        }
        if let Some(member) = changed {
            line["member"] = to_json(member);
        }
        out.json(&line)?;
        return out.end();
    }
    let mut rows = vec![
        ["ID", "NAME", "ROLE", "PEERS", "CLIENTS"]
            .map(String::from)
            .to_vec(),
    ];
    for member in members {
        let role = match member.id == leader_id {
            true => "leader",
            false => suffrage(member),
        };
        let started = if member.client_urls.is_empty() {
            "not started".into()
        } else {
            member.client_urls.join(",")
        };
        rows.push(vec![
            id(member.id),
            member.name.clone(),
            role.to_owned(),
            member.peer_addresses.join(","),
            started,
        ]);
    }
    std::io::Write::write_all(&mut out, aligned(&rows).as_bytes())?;
    out.end()
}

fn suffrage(member: &v1::Member) -> &'static str {
    match member.suffrage() {
        Suffrage::Voter => "voter",
        Suffrage::Learner => "learner",
        Suffrage::Leaving => "leaving",
        Suffrage::Unspecified => "unknown",
    }
}

/// A member with everything that is known of it.
pub fn to_json(member: &v1::Member) -> Value {
    let mut value = json!({
        "id": id(member.id),
        "name": member.name,
        "peer_addresses": member.peer_addresses,
        "client_urls": member.client_urls,
        "suffrage": suffrage(member),
        "feature_level": member.feature_level,
    });
    if let Some(progress) = &member.progress {
        value["progress"] = json!({
            "match_index": progress.match_index,
            "active": progress.active,
            "last_contact_ms": progress.last_contact_ms,
            "never_heard": progress.never_heard,
            "receives_snapshot": progress.receives_snapshot,
        });
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_named_or_numbered() {
        assert_eq!(selector("node-1").name, "node-1");
        assert_eq!(selector("00000000000000ff").id, 255);
        assert_eq!(
            selector("ff"),
            v1::MemberSelector {
                id: 0,
                name: "ff".into()
            }
        );
    }
}
