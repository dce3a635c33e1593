//! Golden scripts: blocks of commands, `---`, and what must be printed. `UPDATE_SCRIPTS=1` writes the output
//! anew (then read the difference). A link is `a->b`, `a-b` for both ways, `*` is anyone.
//!
//! | command | meaning |
//! |---|---|
//! | `cluster 1 2 3 [option=value …]` | founders, started T_min (1 s) ago; `cold` first: just now |
//! | `joiner 4 [option=value …]` | an empty member |
//! | `history 1 2 2 3 [term=5] [commit=2]` | member 1 restarts with entries of these terms from index 2 on |
//! | `lead 1` | campaign and settle, in one line |
//! | `campaign 1`, `tick 1`, `wait 100`, `run 100` | force an election; tick; let ms pass; simulate ms |
//! | `deliver/drop/save/copy [link] [Kind]`, `replay [count]` | move the messages in flight; what is saved comes back by `replay`, the oldest first |
//! | `settle` | deliver until nothing is in flight |
//! | `pause 1`, `resume 1` | stop and go on: messages to 1 wait, it does not tick |
//! | `inject 9->1 5 Vote 7@4 [cluster=8]` | a message out of nowhere: link, term, kind, position |
//! | `cut link`, `isolate 1`, `heal` | lose what is sent from now on |
//! | `propose 1 a b`, `read 1 [count]`, `change 1 +4 ^4 v2 -3`, `transfer 1 2` | requests; + learner, ^ promote, v demote, - remove |
//! | `manual 1 persist …`, `auto 1` | what the surroundings of 1 do only when told; `persist 1 [count]`, `apply`, `fetch`, `build`, `install` tell |
//! | `disk-fails 1`, `flush 1`, `unreachable 1 2`, `stream-fails 1 2` | inputs |
//! | `crash 1 [keep]`, `restart 1`, `lose 1 2` | kill (of the open writes `keep` survive), start, take the 2 newest durable entries |
//! | `status [1 …]`, `log 1`, `peers 1`, `config 1`, `in-flight` | print; in a log `2c` is a configuration entry of term 2 |
//! | `expect 1 Leader term=2 commit=3 …` | fail unless so |

use std::fmt::Write as _;
use std::path::PathBuf;

use bytes::Bytes;
use kvorum_raft::*;

use crate::harness::*;

pub fn run_script(name: &str) {
    let path: PathBuf = [
        env!("CARGO_MANIFEST_DIR"),
        "tests",
        "scripts",
        &format!("{name}.txt"),
    ]
    .iter()
    .collect();
    let text = std::fs::read_to_string(&path).unwrap();
    let actual = Script::default().run(name, &text);
    if std::env::var_os("UPDATE_SCRIPTS").is_some() {
        std::fs::write(&path, actual).unwrap();
        return;
    }
    for (number, (left, right)) in (1..).zip(text.lines().zip(actual.lines())) {
        assert_eq!(
            left, right,
            "{name}.txt line {number}: expected left, came right\n{actual}"
        );
    }
    assert_eq!(text, actual);
}

#[derive(Default)]
struct Script {
    cluster: Option<Cluster>,
    saved: Vec<Flight>,
    token: Token,
    /// The output of the current block.
    block: String,
}

type Outcome = Result<(), String>;

impl Script {
    fn run(&mut self, name: &str, text: &str) -> String {
        let mut out = String::new();
        let mut lines = (1..).zip(text.lines()).peekable();
        while let Some((number, line)) = lines.next() {
            let _ = writeln!(out, "{line}");
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if line != "---" {
                self.command(line).unwrap_or_else(|why| {
                    panic!("{name}.txt line {number}: {line}: {why}\n{out}{}", self.block)
                });
                continue;
            }
            // The block's output replaces the one in the file.
            while lines.next_if(|(_, line)| !line.is_empty()).is_some() {}
            out.push_str(&std::mem::take(&mut self.block));
        }
        assert!(self.block.is_empty(), "{name}.txt ends without ---");
        out
    }

    fn print(&mut self, line: impl std::fmt::Display) {
        let _ = writeln!(self.block, "{line}");
    }

    fn cluster(&mut self) -> &mut Cluster {
        self.cluster.as_mut().expect("a script starts with `cluster`")
    }

    fn command(&mut self, line: &str) -> Outcome {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (command, args) = words.split_first().ok_or("no command")?;
        match *command {
            "cluster" => self.found(args)?,
            "joiner" => {
                let options = options_of(id(args, 0)?, &args[1..])?;
                self.cluster().add(options, 0, Vec::new());
            }
            "history" => self.history(args)?,
            "campaign" => self.cluster().campaign(id(args, 0)?),
            "lead" => {
                let leader = id(args, 0)?;
                self.cluster().campaign(leader);
                self.cluster().settle();
                self.cluster().events.clear();
                let raft = self.cluster().nodes[&leader].raft();
                let line = format!(
                    "{leader}: {:?} term {} commit {}",
                    raft.role(),
                    raft.term(),
                    raft.commit()
                );
                self.print(line);
            }
            "tick" => self.cluster().input(id(args, 0)?, Input::Tick),
            "wait" => self.cluster().now += id(args, 0)? * MS,
            "run" => self.cluster().run(id(args, 0)?),
            "settle" => self.cluster().settle(),
            "deliver" | "drop" | "save" | "copy" => self.flights(command, args)?,
            "replay" => {
                let count = if args.is_empty() {
                    self.saved.len()
                } else {
                    id(args, 0)? as usize
                };
                let saved: Vec<_> = self.saved.drain(..count).collect();
                self.cluster().flights.extend(saved);
            }
            "cut" => {
                let links = links(args.first().ok_or("which link?")?)?;
                self.cluster().cuts.extend(links);
            }
            "isolate" => {
                let one = id(args, 0)?;
                let cluster = self.cluster();
                for other in cluster.nodes.keys().copied() {
                    cluster.cuts.extend([(one, other), (other, one)]);
                }
            }
            "heal" => self.cluster().cuts.clear(),
            "pause" => {
                let paused = id(args, 0)?;
                self.cluster().paused.insert(paused);
            }
            "resume" => {
                let paused = id(args, 0)?;
                self.cluster().paused.remove(&paused);
            }
            "inject" => self.inject(args)?,
            "propose" | "read" | "change" | "transfer" => self.request(command, args)?,
            "manual" | "auto" => self.surround(*command == "manual", args)?,
            "persist" | "apply" | "fetch" | "build" | "install" => self.work(command, args)?,
            "disk-fails" => {
                let cluster = self.cluster();
                cluster.oracle.may_fail = true;
                cluster.input(id(args, 0)?, Input::PersistFailed);
            }
            "flush" => self.cluster().flush(id(args, 0)?),
            "unreachable" => self
                .cluster()
                .input(id(args, 0)?, Input::Unreachable(id(args, 1)?)),
            "stream-fails" => {
                let (from, to) = (id(args, 0)?, id(args, 1)?);
                let cluster = self.cluster();
                cluster
                    .flights
                    .retain(|flight| !(flight.snapshot && is_link(flight, from, to)));
                cluster.input(from, Input::SnapshotSent { peer: to, ok: false });
            }
            "crash" => {
                let keep = if args.len() > 1 { id(args, 1)? as usize } else { 0 };
                self.cluster().crash(id(args, 0)?, keep);
            }
            "restart" => {
                if let Err(error) = self.cluster().restart(id(args, 0)?) {
                    self.print(format!("{}: does not start: {error}", args[0]));
                }
            }
            "lose" => self.lose(id(args, 0)?, id(args, 1)? as usize),
            "status" | "log" | "peers" | "config" | "in-flight" => self.show(command, args)?,
            "expect" => self.expect(args)?,
            other => return Err(format!("unknown command {other}")),
        }
        self.cluster().run_queue();
        let events = std::mem::take(&mut self.cluster().events);
        for event in fold_reads(events) {
            self.print(event);
        }
        Ok(())
    }

    fn found(&mut self, args: &[&str]) -> Outcome {
        let cold = args.first() == Some(&"cold");
        let args = &args[usize::from(cold)..];
        let ids: Vec<&str> = args
            .iter()
            .copied()
            .take_while(|arg| arg.parse::<u64>().is_ok())
            .collect();
        let settings = &args[ids.len()..];
        let mut founders = Vec::new();
        for at in 0..ids.len() {
            founders.push(options_of(id(&ids, at)?, settings)?);
        }
        let mut cluster = Cluster::new();
        cluster.found(founders);
        if !cold {
            cluster.now += 1000 * MS;
        }
        self.cluster = Some(cluster);
        Ok(())
    }

    fn history(&mut self, args: &[&str]) -> Outcome {
        let member = id(args, 0)?;
        let terms: Vec<Term> = args[1..].iter().map_while(|arg| arg.parse().ok()).collect();
        let node = self.cluster().nodes.get_mut(&member).ok_or("no such member")?;
        node.disk.entries.truncate(1);
        for (term, index) in terms.into_iter().zip(2..) {
            let data = Bytes::from(format!("{index}@{term}"));
            node.disk.entries.push(Entry {
                term,
                index,
                kind: EntryKind::Command,
                data,
            });
        }
        node.disk.hard_state = HardState {
            term: node.disk.last().term,
            vote: 0,
        };
        for arg in args {
            match arg.split_once('=') {
                Some(("term", value)) => node.disk.hard_state.term = value.parse().map_err(|_| "a term?")?,
                Some(("commit", value)) => node.disk.mark = value.parse().map_err(|_| "an index?")?,
                _ => {}
            }
        }
        self.cluster().crash(member, 0);
        self.cluster().start(member).map_err(|error| error.to_string())?;
        let node = &self.cluster().nodes[&member];
        let (commit, entries) = (node.raft().commit(), node.disk.entries.clone());
        for entry in entries.into_iter().take(commit as usize) {
            self.cluster().oracle.committed.insert(entry.index, entry);
        }
        Ok(())
    }

    fn flights(&mut self, command: &str, args: &[&str]) -> Outcome {
        let mut wanted = vec![(0, 0)];
        let mut kind = None;
        for arg in args {
            if arg.contains('-') {
                wanted = links(arg)?
            } else {
                kind = Some(*arg)
            }
        }
        let matches = |flight: &Flight| {
            let message = &flight.message;
            let described = describe_message(message);
            let name = described.split(' ').nth(3).unwrap_or_default();
            wanted
                .iter()
                .any(|&(from, to)| (from == 0 || from == message.from) && (to == 0 || to == message.to))
                && kind.is_none_or(|kind| kind == name)
        };
        let all = std::mem::take(&mut self.cluster().flights);
        let (chosen, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(matches);
        if chosen.is_empty() {
            return Err("no such message is in flight".into());
        }
        self.cluster().flights = rest;
        for flight in chosen {
            match command {
                "deliver" => {
                    self.print(describe_message(&flight.message));
                    self.cluster().deliver(flight);
                    let events = std::mem::take(&mut self.cluster().events);
                    for event in fold_reads(events) {
                        self.print(format!("  {event}"));
                    }
                }
                "drop" => {
                    self.print(format!("lost: {}", describe_message(&flight.message)));
                    self.cluster().lose(flight);
                }
                "copy" => {
                    self.saved.push(flight.clone());
                    self.cluster().flights.push(flight);
                }
                _ => self.saved.push(flight),
            }
        }
        Ok(())
    }

    fn inject(&mut self, args: &[&str]) -> Outcome {
        let (from, to) = links(args.first().ok_or("which link?")?)?[0];
        let (term, kind) = (id(args, 1)?, *args.get(2).ok_or("which kind?")?);
        let position = args
            .get(3)
            .and_then(|arg| arg.split_once('@'))
            .unwrap_or(("0", "0"));
        let last = LogId {
            index: id(&[position.0], 0)?,
            term: id(&[position.1], 0)?,
        };
        let body = match kind {
            "Vote" => MessageBody::Vote {
                campaign: 1,
                last,
                forced: false,
            },
            "PreVote" => MessageBody::PreVote { campaign: 1, last },
            "HigherTerm" => MessageBody::HigherTerm,
            "AppendReply" => {
                let result = AppendResult::Matched(last.index);
                MessageBody::AppendReply {
                    epoch: 1,
                    round: 1,
                    prev: 0,
                    result,
                }
            }
            other => return Err(format!("cannot make a {other}")),
        };
        let cluster = if args.contains(&"cluster=8") { 8 } else { CLUSTER };
        let message = Message {
            cluster,
            from,
            to,
            term,
            body,
        };
        self.print(describe_message(&message));
        self.cluster().deliver(Flight {
            message,
            snapshot: false,
        });
        Ok(())
    }

    fn request(&mut self, command: &str, args: &[&str]) -> Outcome {
        let member = id(args, 0)?;
        if command == "transfer" {
            let target = id(args, 1)?;
            if let Err(why) = self.cluster().nodes[&member].raft().check_transfer(target) {
                self.print(format!("{member}: no transfer to {target}: {why:?}"));
            }
            self.cluster().input(member, Input::TransferTo(target));
            return Ok(());
        }
        let count = if command == "read" && args.len() > 1 {
            id(args, 1)?
        } else {
            1
        };
        for _ in 0..count {
            self.token += 1;
            let token = self.token;
            let input = match command {
                "propose" => {
                    let commands = args[1..]
                        .iter()
                        .map(|data| Bytes::copy_from_slice(data.as_bytes()));
                    Input::Propose {
                        token,
                        commands: commands.collect(),
                    }
                }
                "read" => Input::Read { token },
                _ => {
                    let changes = args[1..]
                        .iter()
                        .map(|arg| change(arg))
                        .collect::<Result<_, _>>()?;
                    Input::ChangeConfig {
                        token,
                        changes,
                        context: Bytes::new(),
                    }
                }
            };
            self.cluster().input(member, input);
        }
        Ok(())
    }

    fn surround(&mut self, manual: bool, args: &[&str]) -> Outcome {
        let member = id(args, 0)?;
        let node = self.cluster().nodes.get_mut(&member).ok_or("no such member")?;
        for arg in &args[1..] {
            let what = match *arg {
                "persist" => &mut node.auto.persist,
                "apply" => &mut node.auto.apply,
                "fetch" => &mut node.auto.fetch,
                "build" => &mut node.auto.build,
                "install" => &mut node.auto.install,
                other => return Err(format!("unknown work {other}")),
            };
            *what = !manual;
        }
        if !manual {
            while !self.cluster().nodes[&member].writes.is_empty() {
                self.cluster().persist(member);
                self.cluster().run_queue();
            }
        }
        Ok(())
    }

    fn work(&mut self, command: &str, args: &[&str]) -> Outcome {
        let member = id(args, 0)?;
        let count = if args.len() > 1 { id(args, 1)? } else { 1 };
        for _ in 0..count {
            let cluster = self.cluster();
            match command {
                "persist" => cluster.persist(member),
                "apply" => cluster.apply(member),
                "fetch" => cluster.fetch(member),
                "build" => cluster.build(member),
                _ => cluster.install(member),
            }
            cluster.run_queue();
        }
        Ok(())
    }

    fn lose(&mut self, member: MemberId, count: usize) {
        let cluster = self.cluster();
        cluster.oracle.lossy = true;
        let node = cluster.nodes.get_mut(&member).unwrap();
        assert!(node.raft.is_none(), "only a dead member's disk changes");
        let left = node.disk.entries.len() - count;
        node.disk.entries.truncate(left);
        let last = node.disk.last().index;
        node.disk.mark = node.disk.mark.min(last);
        // Its state machine has not flushed what is gone.
        if node.machine.flushed.last.index > last {
            node.machine = Default::default();
        }
    }

    fn show(&mut self, command: &str, args: &[&str]) -> Outcome {
        if command == "in-flight" {
            let lines: Vec<_> = self
                .cluster()
                .flights
                .iter()
                .map(|flight| describe_message(&flight.message))
                .collect();
            for line in lines {
                self.print(line);
            }
            return Ok(());
        }
        let members: Vec<MemberId> = match args {
            [] => self.cluster().nodes.keys().copied().collect(),
            _ => (0..args.len()).map(|at| id(args, at)).collect::<Result<_, _>>()?,
        };
        for member in members {
            let node = &self.cluster().nodes[&member];
            let Some(raft) = &node.raft else {
                self.print(format!("{member}: down"));
                continue;
            };
            let status = raft.status();
            let lines = match command {
                "status" => vec![describe_status(&status)],
                "log" => {
                    let term = |index| {
                        let config = node
                            .disk
                            .entry(index)
                            .is_some_and(|entry| entry.kind == EntryKind::Config);
                        format!(
                            "{}{}",
                            raft.term_at(index).unwrap(),
                            if config { "c" } else { "" }
                        )
                    };
                    let terms: Vec<_> = (status.first..=status.last.index).map(term).collect();
                    vec![format!("{member}: from {} [{}]", status.first, terms.join(" "))]
                }
                "config" => {
                    let (latest, committed) = (raft.latest_configuration(), raft.committed_configuration());
                    let (latest, committed) =
                        (describe_configuration(latest), describe_configuration(committed));
                    vec![format!("{member}: latest {latest}, committed {committed}")]
                }
                _ => {
                    let line = |peer: &PeerStatus| {
                        let (messages, _) = peer.in_flight;
                        let PeerStatus {
                            id,
                            state,
                            matched,
                            next,
                            ..
                        } = peer;
                        format!(
                            "{member}: peer {id} {state:?} match {matched} next {next}, {messages} in flight"
                        )
                    };
                    status.peers.iter().map(line).collect()
                }
            };
            for line in lines {
                self.print(line);
            }
        }
        Ok(())
    }

    fn expect(&mut self, args: &[&str]) -> Outcome {
        let member = id(args, 0)?;
        let node = &self.cluster().nodes[&member];
        let raft = node.raft.as_ref().ok_or("it is down")?;
        let status = raft.status();
        for arg in &args[1..] {
            let actual = match arg.split_once('=').map_or(*arg, |(name, _)| name) {
                "term" => format!("term={}", status.hard_state.term),
                "vote" => format!("vote={}", status.hard_state.vote),
                "leader" => format!("leader={}", status.leader),
                "commit" => format!("commit={}", status.commit),
                "applied" => format!("applied={}", status.applied),
                "persisted" => format!("persisted={}", status.persisted),
                "first" => format!("first={}", status.first),
                "last" => format!("last={}@{}", status.last.index, status.last.term),
                "transfer" => format!("transfer={}", status.transfer.unwrap_or(0)),
                "reads" => format!("reads={}", status.reads_waiting),
                "config" => format!(
                    "config={}",
                    describe_configuration(&status.latest).replace(' ', ",")
                ),
                _ => format!("{:?}", status.role),
            };
            if actual != *arg {
                return Err(format!("expected {arg}, is {actual}"));
            }
        }
        Ok(())
    }
}

/// Reads that become ready together take one line.
fn fold_reads(events: Vec<String>) -> Vec<String> {
    let mut folded: Vec<String> = Vec::new();
    let mut run: Option<(String, String, u64, u64)> = None;
    let line = |(member, end, first, last): (String, String, u64, u64)| match last - first {
        0 => format!("{member}: read {first} {end}"),
        _ => format!("{member}: reads {first} to {last} {end}"),
    };
    for event in events {
        let (member, what) = event.split_once(": ").unwrap_or(("", &event));
        let read = what.strip_prefix("read ").and_then(|rest| rest.split_once(' '));
        let read = read.and_then(|(token, end)| Some((token.parse::<u64>().ok()?, end)));
        match (read, &mut run) {
            (Some((token, end)), Some((of, same, _, last)))
                if of == member && same == end && *last + 1 == token =>
            {
                *last = token;
            }
            (read, run) => {
                folded.extend(run.take().map(line));
                match read {
                    Some((token, end)) => *run = Some((member.into(), end.into(), token, token)),
                    None => folded.push(event),
                }
            }
        }
    }
    folded.extend(run.map(line));
    folded
}

fn describe_status(status: &Status) -> String {
    let Status {
        id,
        role,
        leader,
        commit,
        applied,
        last,
        ..
    } = status;
    let term = status.hard_state.term;
    format!(
        "{id}: {role:?} term {term} leader {leader} commit {commit} applied {applied} last {}@{}",
        last.index, last.term
    )
}

fn id(args: &[&str], at: usize) -> Result<u64, String> {
    let arg = args.get(at).ok_or("an argument is missing")?;
    arg.parse().map_err(|_| format!("{arg} is no number"))
}

fn links(text: &str) -> Result<Vec<(MemberId, MemberId)>, String> {
    let end = |text: &str| if text == "*" { Ok(0) } else { id(&[text], 0) };
    if let Some((from, to)) = text.split_once("->") {
        return Ok(vec![(end(from)?, end(to)?)]);
    }
    let (one, other) = text.split_once('-').ok_or("a link is a->b or a-b")?;
    Ok(vec![(end(one)?, end(other)?), (end(other)?, end(one)?)])
}

fn change(arg: &str) -> Result<MemberChange, String> {
    let (kind, member) = arg.split_at(1);
    let member = id(&[member], 0)?;
    Ok(match kind {
        "+" => MemberChange::AddLearner(member),
        "^" => MemberChange::Promote(member),
        "v" => MemberChange::Demote(member),
        "-" => MemberChange::Remove(member),
        other => return Err(format!("unknown change {other}")),
    })
}

fn options_of(member: MemberId, settings: &[&str]) -> Result<Options, String> {
    let mut options = options(member);
    for setting in settings {
        let (name, value) = setting.split_once('=').ok_or("a setting is name=value")?;
        let number = || {
            value
                .parse::<usize>()
                .map_err(|_| format!("{value} is no number"))
        };
        match name {
            "prevote" => options.pre_vote = value == "on",
            "lease" => options.lease_reads = value == "on",
            "append" => options.append_bytes_max = number()?,
            "entries" => options.append_entries_max = number()?,
            "quorum" => options.check_quorum = number()? as u64 * MS,
            "window" => options.window_messages = number()?,
            "uncommitted" => options.uncommitted_bytes_max = number()?,
            "cache" => options.cache_bytes_max = number()?,
            "entry" => options.entry_bytes_max = number()?,
            "lag" => options.promote_lag_bytes = number()? as u64,
            "retain" => options.retain_bytes_max = number()? as u64,
            other => return Err(format!("unknown setting {other}")),
        }
    }
    Ok(options)
}
