//! `status`: how the members are, each asked for itself.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use clap::Args;
use kvorum_client::proto::v1::{self, Role, Suffrage};
use kvorum_client::{Client, Credentials, Error, Options};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::member::id;
use super::{ClientArgs, Output};
use crate::failure::{Code, Failure};
use crate::units::{format_duration, format_size};

/// How long one member may take to answer.
const ONE_TIMEOUT: Duration = Duration::from_secs(2);

/// Arguments of `status`.
#[derive(Args)]
#[command(after_help = "Exit code 5 if any member does not answer.")]
pub struct StatusArgs {
    /// Ask only the given endpoints, not the other members that they know
    #[arg(long)]
    only: bool,
    #[command(flatten)]
    pub client: ClientArgs,
}

/// What one server answered, or why it did not.
pub struct Answer {
    /// `host:port`.
    pub endpoint: String,
    /// What came.
    pub status: Result<v1::StatusResponse, Error>,
}

/// Asks servers at the same time; answers come in the order of `endpoints`.
pub async fn ask(
    endpoints: Vec<String>,
    credentials: Option<Credentials>,
    timeout: Duration,
) -> Result<Vec<Answer>, Failure> {
    let mut asked = JoinSet::new();
    for (position, endpoint) in endpoints.into_iter().enumerate() {
        let options = Options {
            endpoints: vec![endpoint.clone()],
            timeout,
            credentials: credentials.clone(),
            ..Options::default()
        };
        let client = Client::new(options)?;
        asked.spawn(async move {
            (
                position,
                Answer {
                    endpoint,
                    status: client.status().await,
                },
            )
        });
    }
    let mut answers = asked.join_all().await;
    answers.sort_by_key(|(position, _)| *position);
    Ok(answers.into_iter().map(|(_, answer)| answer).collect())
}

/// `host:port` of a URL for clients.
fn host_port(url: &str) -> &str {
    url.split_once("://")
        .map_or(url, |(_, rest)| rest)
        .trim_end_matches('/')
}

/// Shows the members.
pub async fn run(args: StatusArgs) -> Result<(), Failure> {
    let timeout = args.client.timeout.unwrap_or(ONE_TIMEOUT);
    // Checks the endpoints' form.
    let endpoints = args.client.client(timeout)?.endpoints();
    let credentials = args.client.credentials()?;
    let mut answers = ask(endpoints, credentials.clone(), timeout).await?;
    if !args.only {
        discover(&mut answers, credentials, timeout).await?;
    }
    let mut out = Output::start();
    if args.client.json() {
        let lines: Vec<Value> = answers.iter().map(to_json).collect();
        out.json(&lines)?;
    } else {
        std::io::Write::write_all(&mut out, table(&answers).as_bytes())?;
    }
    out.end()?;
    let failed = |answer: &Answer| answer.status.is_err();
    if answers.iter().any(failed) {
        // Each has its row and its remark.
        let refused = |answer: &Answer| matches!(answer.status, Err(Error::Rejected { .. }));
        let message = match answers.iter().all(failed) {
            true if answers.iter().any(refused) => "no server says how it is; each one's answer stands above",
            true => "no server answered; check --endpoints",
            false => "",
        };
        return Err(Failure::new(Code::Unavailable, message));
    }
    Ok(())
}

/// Why nothing is decided, if the members that answered know it.
pub fn diagnosis(answers: &[Answer]) -> Option<String> {
    let answered: Vec<(&str, &v1::StatusResponse)> = answers
        .iter()
        .filter_map(|answer| Some((answer.endpoint.as_str(), answer.status.as_ref().ok()?)))
        .collect();
    // One that has a leader makes all the others' troubles passing ones.
    if answered
        .iter()
        .any(|(_, status)| status.majority_contact && status.leader_id != 0)
    {
        return None;
    }
    let (endpoint, status) = answered.first()?;
    Some(match status.majority_contact {
        false => format!(
            "{} ({endpoint}) is cut off from the majority of the members: start those that are down, or give \
             --endpoints that are not cut off",
            status.name
        ),
        true => format!(
            "{} ({endpoint}) knows no leader now: try again after the election",
            status.name
        ),
    })
}

/// Asks the members that the answers name and that did not answer yet.
async fn discover(
    answers: &mut Vec<Answer>,
    credentials: Option<Credentials>,
    timeout: Duration,
) -> Result<(), Failure> {
    let answered: Vec<&v1::StatusResponse> = answers.iter().filter_map(|a| a.status.as_ref().ok()).collect();
    let Some(best) = answered.iter().max_by_key(|status| status.applied_index) else {
        return Ok(());
    };
    let known: Vec<u64> = answered.iter().map(|status| status.member_id).collect();
    let others: Vec<String> = best
        .members
        .iter()
        .filter(|member| !known.contains(&member.id))
        .filter_map(|member| member.client_urls.first())
        .map(|url| host_port(url).to_owned())
        .filter(|endpoint| answers.iter().all(|answer| answer.endpoint != *endpoint))
        .collect();
    answers.extend(ask(others, credentials, timeout).await?);
    Ok(())
}

/// A role in one word.
pub fn role(status: &v1::StatusResponse) -> &'static str {
    match (status.suffrage(), status.role()) {
        (Suffrage::Learner, _) => "learner",
        (_, Role::Leader) => "leader",
        (_, Role::Follower) => "follower",
        (_, Role::PreCandidate | Role::Candidate) => "candidate",
        (_, Role::Unspecified) => "unknown",
    }
}

/// What a person should know of a member, beyond the numbers.
pub fn notes(status: &v1::StatusResponse) -> Vec<String> {
    let mut notes = Vec::new();
    if !status.majority_contact {
        notes.push("CUT OFF from the majority: no writes, no linearizable reads".to_owned());
    } else if status.leader_id == 0 {
        notes.push("no leader known".to_owned());
    }
    // A server that is cut off says so in its errors, too: once is enough.
    let told = |error: &&String| status.majority_contact || !error.starts_with("cut off");
    notes.extend(status.errors.iter().filter(told).cloned());
    notes
}

/// For people: a row for each server, then what is worth a remark.
pub fn table(answers: &[Answer]) -> String {
    let newest = answers
        .iter()
        .filter_map(|a| a.status.as_ref().ok())
        .map(|s| s.commit_index)
        .max()
        .unwrap_or(0);
    let mut names: BTreeMap<&str, &str> = BTreeMap::new();
    for status in answers.iter().filter_map(|a| a.status.as_ref().ok()) {
        for member in &status.members {
            names.extend(
                member
                    .client_urls
                    .iter()
                    .map(|url| (host_port(url), member.name.as_str())),
            );
        }
    }
    let header = [
        "NAME", "ENDPOINT", "ROLE", "TERM", "COMMIT", "APPLIED", "LAG", "REVISION", "KEYS", "SIZE", "UP",
    ];
    let mut rows: Vec<Vec<String>> = vec![header.map(String::from).to_vec()];
    let mut remarks = String::new();
    for answer in answers {
        match &answer.status {
            Ok(status) => {
                let up = Duration::from_secs(status.uptime_ms / 1000);
                rows.push(vec![
                    status.name.clone(),
                    answer.endpoint.clone(),
                    role(status).to_owned(),
                    status.term.to_string(),
                    status.commit_index.to_string(),
                    status.applied_index.to_string(),
                    newest.saturating_sub(status.applied_index).to_string(),
                    status.revision.to_string(),
                    status.keys.to_string(),
                    rounded_size(status.db_bytes),
                    format_duration(up),
                ]);
                for note in notes(status) {
                    // Writing to a string cannot fail.
                    let _ = writeln!(remarks, "{}: {note}", status.name);
                }
            }
            Err(error) => {
                let name = names.get(answer.endpoint.as_str()).copied();
                let about = error.to_string();
                let _ = match name {
                    None if about.contains(answer.endpoint.as_str()) => writeln!(remarks, "{about}"),
                    name => writeln!(remarks, "{}: {about}", name.unwrap_or(&answer.endpoint)),
                };
                let name = name.unwrap_or("-").to_owned();
                let state = match error {
                    Error::Rejected { .. } => "refuses",
                    _ => "unreachable",
                };
                rows.push(vec![name, answer.endpoint.clone(), state.to_owned()]);
            }
        }
    }
    aligned(&rows) + &remarks
}

/// To at most three digits, as people read it.
fn rounded_size(bytes: u64) -> String {
    let unit = [1u64 << 30, 1 << 20, 1 << 10]
        .into_iter()
        .find(|unit| bytes >= 10 * unit)
        .unwrap_or(1);
    format_size(bytes / unit * unit)
}

/// Columns of equal width, two spaces between; numbers to the right.
pub fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cells = |column: usize| rows.iter().filter_map(move |row| row.get(column));
    let widths: Vec<usize> = (0..columns)
        .map(|column| cells(column).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let numeric: Vec<bool> = (0..columns)
        .map(|column| {
            cells(column)
                .skip(1)
                .all(|cell| cell.chars().all(|c| c.is_ascii_digit()))
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let _ = match numeric[column] {
                true => write!(line, "{cell:>width$}  "),
                false => write!(line, "{cell:<width$}  "),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn to_json(answer: &Answer) -> Value {
    let status = match &answer.status {
        Ok(status) => status,
        Err(error) => return json!({"endpoint": answer.endpoint, "error": error.to_string()}),
    };
    let members: Vec<Value> = status.members.iter().map(super::member::to_json).collect();
    json!({
        "endpoint": answer.endpoint,
        "version": status.version,
        "cluster_uuid": hex(&status.cluster_uuid),
        "cluster_id": id(status.cluster_id),
        "member_id": id(status.member_id),
        "name": status.name,
        "role": role(status),
        "term": status.term,
        "leader_id": id(status.leader_id),
        "majority_contact": status.majority_contact,
        "first_index": status.first_index,
        "last_index": status.last_index,
        "last_term": status.last_term,
        "persisted_index": status.persisted_index,
        "commit_index": status.commit_index,
        "applied_index": status.applied_index,
        "flushed_index": status.flushed_index,
        "revision": status.revision,
        "compact_revision": status.compact_revision,
        "keys": status.keys,
        "db_bytes": status.db_bytes,
        "db_bytes_in_use": status.db_bytes_in_use,
        "digest": hex(&status.digest),
        "sessions": status.sessions,
        "watchers": status.watchers,
        "pending_writes": status.pending_writes,
        "uptime_ms": status.uptime_ms,
        "feature_level": status.feature_level,
        "errors": status.errors,
        "members": members,
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn member(name: &str, role: Role, commit: u64, applied: u64) -> v1::StatusResponse {
        let mut status = v1::StatusResponse {
            name: name.to_owned(),
            term: 3,
            leader_id: 1,
            majority_contact: true,
            commit_index: commit,
            applied_index: applied,
            revision: 17,
            keys: 4,
            db_bytes: 20_000_000,
            uptime_ms: 61_000,
            ..Default::default()
        };
        status.set_role(role);
        status.set_suffrage(Suffrage::Voter);
        status
    }

    #[test]
    fn the_table_shows_lag_silence_and_cut_off_members() {
        let mut leader = member("node-1", Role::Leader, 120, 120);
        let gone = v1::Member {
            name: "node-3".into(),
            client_urls: vec!["http://h:7403".into()],
            ..Default::default()
        };
        leader.members.push(gone);
        let mut cut_off = member("node-2", Role::Candidate, 100, 99);
        cut_off.majority_contact = false;
        cut_off.errors = vec![
            "cut off from the majority: writes wait".into(),
            "the disk is full".into(),
        ];
        let answers = [
            Answer {
                endpoint: "h:7401".into(),
                status: Ok(leader),
            },
            Answer {
                endpoint: "h:7402".into(),
                status: Ok(cut_off),
            },
            Answer {
                endpoint: "h:7403".into(),
                status: Err(Error::Unavailable {
                    message: "cannot connect to h:7403: connection refused".into(),
                }),
            },
        ];
        let expected = "\
NAME    ENDPOINT  ROLE         TERM  COMMIT  APPLIED  LAG  REVISION  KEYS  SIZE   UP
node-1  h:7401    leader          3     120      120    0        17     4  19MiB  1m1s
node-2  h:7402    candidate       3     100       99   21        17     4  19MiB  1m1s
node-3  h:7403    unreachable
node-2: CUT OFF from the majority: no writes, no linearizable reads
node-2: the disk is full
node-3: cannot connect to h:7403: connection refused
";
        assert_eq!(table(&answers), expected);
        assert_eq!(diagnosis(&answers), None, "node-1 leads");
        let cut_off = diagnosis(&answers[1..]).unwrap();
        assert!(cut_off.starts_with("node-2 (h:7402) is cut off"), "{cut_off}");
        assert_eq!(diagnosis(&answers[2..]), None, "nobody knows");
    }

    #[test]
    fn a_server_that_is_not_there_is_told_of_once() {
        let answers = [Answer {
            endpoint: "h:1".into(),
            status: Err(Error::Unavailable {
                message: "cannot connect to h:1: connection refused".into(),
            }),
        }];
        let rows = table(&answers);
        assert!(rows.contains("\n-     h:1       unreachable\n"), "{rows}");
        assert_eq!(rows.matches("refused").count(), 1, "{rows}");
    }
}
