//! From etcd's flags to kvorum's settings: what each value means, which contradict each other, and what is refused.
//!
//! Complaints have etcd's words where etcd has some.

use std::path::PathBuf;
use std::time::Duration;

use kvorum_server::ServeOptions;
use kvorum_server::etcd_options::{Compaction, WATCH_PROGRESS_MIN, check_version};
use kvorum_server::options::{BCRYPT_COST_MAX, BCRYPT_COST_MIN, ELECTION_TIMEOUT_MAX, Quota};

use super::cluster;
use super::flags::{Fate, GATES};
use super::values::{Values, boolean, is_same, nanoseconds};
use crate::config::{LogFormat, LogOutput, Settings};

/// The store's size at which writes end, if nothing is said.
const QUOTA_BYTES: u64 = 2 << 30;
/// A larger quota is taken with a warning, as in etcd.
const QUOTA_BYTES_ADVISED: u64 = 8 << 30;
/// Larger requests are taken with a warning, as in etcd.
const REQUEST_BYTES_ADVISED: u64 = 10 << 20;
/// The largest request that the log takes.
const REQUEST_BYTES_MAX: u64 = 16 << 20;
/// Records of history that etcd removes at one time, and how long it then waits, if 0 is said.
const REMOVALS: (u64, Duration) = (1000, Duration::from_millis(10));
/// How etcd tells of its old names.
const DEPRECATED: &str = "is deprecated in v3.6 and will be decommissioned in v3.7";
/// The costs that bcrypt knows.
const BCRYPT_COSTS: std::ops::RangeInclusive<u64> = BCRYPT_COST_MIN as u64..=BCRYPT_COST_MAX as u64;

/// What is to be run.
#[derive(Debug)]
pub struct Plan {
    /// The member's settings.
    pub settings: Settings,
    /// What was strange but no error, one line each.
    pub warnings: Vec<String>,
    /// What is worth a line in the log.
    pub notes: Vec<String>,
    /// The member ends with its standard input.
    pub until_stdin_closes: bool,
}

/// Makes the settings. `base` holds what etcd has no flags for.
///
/// # Errors
/// The first thing that cannot be, in one line.
pub fn plan(mut values: Values, base: Settings) -> Result<Plan, String> {
    let mut plan = Plan {
        settings: base,
        warnings: std::mem::take(&mut values.warnings),
        notes: std::mem::take(&mut values.notes),
        until_stdin_closes: values.is_set("until-stdin-closes"),
    };
    rename(&mut values, &mut plan.warnings)?;
    refuse(&values, &mut plan.warnings)?;
    gates(&values, &mut plan.warnings)?;
    logging(&values, &mut plan)?;
    timing(&values, &mut plan.settings.serve)?;
    limits(&values, &mut plan)?;
    compaction(&values, &mut plan.settings.serve)?;
    watching(&values, &mut plan)?;
    auth(&values, &mut plan)?;
    let serve = &mut plan.settings.serve;
    serve.allow_plaintext = true;
    serve.surfaces.health_as_etcd = true;
    serve.surfaces.errors_as_text = true;
    serve.surfaces.cors = match values.list("cors") {
        none if none.is_empty() => vec!["*".to_owned()],
        origins => origins,
    };
    serve.etcd.hosts = values.list("host-whitelist");
    serve.etcd.gateway = values.is_set("enable-grpc-gateway");
    serve.etcd.pre_vote = values.is_set("pre-vote");
    serve.etcd.strict_reconfiguration = values.is_set("strict-reconfig-check");
    serve.etcd.learners_max = usize::try_from(values.integer("max-learners")).unwrap_or(0);
    if let Some(version) = values.given("compat-version") {
        check_version(version).map_err(|error| error.to_string())?;
        serve.etcd.version = version.to_owned();
    }
    cluster::sockets(&values, serve)?;
    cluster::membership(&values, serve, &mut plan.notes)?;
    Ok(plan)
}

/// Puts the values of old names under the new ones.
fn rename(values: &mut Values, warnings: &mut Vec<String>) -> Result<(), String> {
    let old: Vec<(&'static str, Fate)> = values.all().map(|(flag, _)| (flag.name, flag.fate)).collect();
    let given_gates = values.text("feature-gates").to_owned();
    for (name, fate) in old {
        let new = match fate {
            Fate::Renamed(new) => new,
            Fate::Gate(gate) => {
                let (text, place) = values.take(name).expect("it was given");
                let value = boolean(&text).expect("checked when it was given");
                let setting = format!("{gate}={value}");
                if given_gates.contains(gate) {
                    return Err(format!(
                        "cannot specify both flags: --{name}={value} and --feature-gates={given_gates} at the same \
                         time, please just use --feature-gates={setting}"
                    ));
                }
                let before = values.text("feature-gates").to_owned();
                let all = [before, setting.clone()].join(",");
                values.put("feature-gates", (all.trim_start_matches(',').to_owned(), place));
                warnings.push(format!(
                    "--{name} {DEPRECATED}. Use '--feature-gates={setting}' instead."
                ));
                continue;
            }
            _ => continue,
        };
        if values.given(new).is_some() {
            return Err(format!(
                "cannot set --{name} and --{new} at the same time, please use --{new} only"
            ));
        }
        let value = values.take(name).expect("it was given");
        values.put(new, value);
        warnings.push(format!("--{name} {DEPRECATED}. Use '--{new}' instead."));
    }
    Ok(())
}

/// Refuses what is not there yet, and tells of what does nothing. A default says nothing in either case.
fn refuse(values: &Values, warnings: &mut Vec<String>) -> Result<(), String> {
    for (flag, text) in values.all() {
        if is_same(flag.kind, text, flag.default) || text.is_empty() {
            continue;
        }
        match flag.fate {
            Fate::Refused(instead) => {
                return Err(format!("--{} is not yet supported: {instead}", flag.name));
            }
            Fate::Ignored(why) => warnings.push(format!("--{} has no effect: {why}", flag.name)),
            _ => {}
        }
    }
    Ok(())
}

/// Feature gates, in the words of their library.
fn gates(values: &Values, warnings: &mut Vec<String>) -> Result<(), String> {
    for part in values.list("feature-gates") {
        let (name, value) = part
            .split_once('=')
            .ok_or_else(|| format!("missing bool value for {part}"))?;
        let (name, text) = (name.trim(), value.trim());
        let value = boolean(text).ok_or_else(|| format!("invalid value of {name}={text}: parse error"))?;
        let (_, default, fate) = GATES
            .iter()
            .find(|(known, ..)| *known == name)
            .ok_or_else(|| format!("unrecognized feature gate: {name}"))?;
        match fate {
            _ if value == *default => {}
            Fate::Refused(instead) => {
                return Err(format!(
                    "--feature-gates={name}={value} is not yet supported: {instead}"
                ));
            }
            Fate::Ignored(why) => {
                warnings.push(format!("--feature-gates={name}={value} has no effect: {why}"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn logging(values: &Values, plan: &mut Plan) -> Result<(), String> {
    let log = &mut plan.settings.log;
    log.format = match values.text("log-format") {
        "json" | "" => LogFormat::Json,
        "console" => LogFormat::Text,
        other => {
            return Err(format!(
                "unknown log format: {other}, supported values json, console"
            ));
        }
    };
    log.level = match values.text("log-level") {
        "debug" => tracing::Level::DEBUG,
        "info" => tracing::Level::INFO,
        "warn" => tracing::Level::WARN,
        // What is above it does not exist here.
        "error" | "dpanic" | "panic" | "fatal" => tracing::Level::ERROR,
        other => return Err(format!("unknown level: {other:?}")),
    };
    let outputs = values.list("log-outputs");
    if outputs.len() > 1 && outputs.iter().any(|output| output == "default") {
        return Err("multi logoutput for \"default\" is not supported yet".to_owned());
    }
    log.outputs = outputs
        .iter()
        .map(|output| match output.as_str() {
            "default" | "stderr" => LogOutput::Stderr,
            "stdout" => LogOutput::Stdout,
            "systemd/journal" => {
                plan.notes.push(
                    "log-outputs: under systemd the journal takes what is written to stderr".to_owned(),
                );
                LogOutput::Stderr
            }
            path => LogOutput::File(PathBuf::from(path)),
        })
        .collect();
    log.outputs.dedup();
    if log.outputs.is_empty() {
        log.outputs.push(LogOutput::Stderr);
    }
    Ok(())
}

fn timing(values: &Values, serve: &mut ServeOptions) -> Result<(), String> {
    let heartbeat = values.number("heartbeat-interval");
    let election = values.number("election-timeout");
    let longest = ELECTION_TIMEOUT_MAX.as_millis() as u64;
    for (name, value) in [("heartbeat-interval", heartbeat), ("election-timeout", election)] {
        if value == 0 {
            return Err(format!("--{name} must be >0 (set to 0ms)"));
        }
    }
    if heartbeat.saturating_mul(5) > election {
        return Err(format!(
            "--election-timeout[{election}ms] should be at least as 5 times as --heartbeat-interval[{heartbeat}ms]"
        ));
    }
    if election > longest {
        return Err(format!(
            "--election-timeout[{election}ms] is too long, and should be set less than {longest}ms"
        ));
    }
    serve.heartbeat_interval = Duration::from_millis(heartbeat);
    serve.election_timeout = Duration::from_millis(election);
    Ok(())
}

fn limits(values: &Values, plan: &mut Plan) -> Result<(), String> {
    let serve = &mut plan.settings.serve;
    let quota = match values.integer("quota-backend-bytes") {
        0 => QUOTA_BYTES,
        given => u64::try_from(given).unwrap_or(0),
    };
    if quota > QUOTA_BYTES_ADVISED {
        plan.warnings.push(format!(
            "quota exceeds the maximum value: --quota-backend-bytes={quota} is more than {QUOTA_BYTES_ADVISED}"
        ));
    }
    let small = |name: &str| usize::try_from(values.number(name)).unwrap_or(usize::MAX);
    serve.quota = Quota {
        bytes: usize::try_from(quota).unwrap_or(usize::MAX),
        alarm_stays: true,
    };
    let request = values.number("max-request-bytes");
    if request > REQUEST_BYTES_MAX {
        return Err(format!(
            "--max-request-bytes={request} is more than the {REQUEST_BYTES_MAX} that one entry of the log takes"
        ));
    }
    if request > REQUEST_BYTES_ADVISED {
        plan.warnings.push(format!(
            "exceeded recommended request limit: --max-request-bytes={request} is more than {REQUEST_BYTES_ADVISED}"
        ));
    }
    serve.request_bytes_max = small("max-request-bytes");
    serve.etcd.txn_ops_max = small("max-txn-ops");
    let streams = values.number("max-concurrent-streams");
    serve.etcd.streams_max = u32::try_from(streams)
        .map_err(|_| format!("--max-concurrent-streams={streams} is more than {}", u32::MAX))?;
    let (interval, timeout) = (
        values.duration("grpc-keepalive-interval"),
        values.duration("grpc-keepalive-timeout"),
    );
    // Either switches it off.
    let is_off = interval.is_zero() || timeout.is_zero();
    serve.etcd.ping_interval = if is_off { Duration::ZERO } else { interval };
    serve.etcd.ping_timeout = timeout;
    Ok(())
}

fn compaction(values: &Values, serve: &mut ServeOptions) -> Result<(), String> {
    let retention = match values.text("auto-compaction-retention") {
        "" => "0",
        retention => retention,
    };
    let invalid = || format!("error parsing CompactionRetention: time: invalid duration {retention:?}");
    let number = retention.parse::<u32>().ok();
    let nanoseconds = || {
        nanoseconds(retention)
            .and_then(|ns| u64::try_from(ns).ok())
            .ok_or_else(invalid)
    };
    serve.etcd.compaction = Some(match values.text("auto-compaction-mode") {
        "revision" => match number {
            Some(0) => Compaction::Off,
            Some(revisions) => Compaction::Revisions(revisions.into()),
            // As in etcd: a time there is a number of nanoseconds.
            None => Compaction::Revisions(nanoseconds()?),
        },
        "periodic" => {
            let period = match number {
                Some(hours) => Duration::from_secs(3600 * u64::from(hours)),
                None => Duration::from_nanos(nanoseconds()?),
            };
            match period.is_zero() {
                true => Compaction::Off,
                false => Compaction::Periodic(period),
            }
        }
        "" => return Err("undefined auto-compaction-mode".to_owned()),
        other => return Err(format!("unknown auto-compaction-mode {other:?}")),
    });
    serve.etcd.removals_per_second = removals_per_second(values)?;
    Ok(())
}

/// The rate that a batch and the sleep after it make; at least one record.
fn removals_per_second(values: &Values) -> Result<u64, String> {
    let given = values.integer("compaction-batch-limit");
    let batch =
        u64::try_from(given).map_err(|_| format!("--compaction-batch-limit must be >=0 (set to {given})"))?;
    let batch = if batch == 0 { REMOVALS.0 } else { batch };
    let sleep = match values.duration("compaction-sleep-interval") {
        Duration::ZERO => REMOVALS.1,
        given => given,
    };
    let rate = (u128::from(batch) * 1_000_000_000).div_ceil(sleep.as_nanos());
    Ok(u64::try_from(rate).unwrap_or(u64::MAX))
}

fn watching(values: &Values, plan: &mut Plan) -> Result<(), String> {
    let etcd = &mut plan.settings.serve.etcd;
    if let Some(given) = values.given("watch-progress-notify-interval") {
        let interval = values.duration("watch-progress-notify-interval");
        if interval.is_zero() {
            // As in etcd: the default.
        } else if interval < WATCH_PROGRESS_MIN {
            plan.warnings.push(format!(
                "adjusting watch progress notify interval to minimum period: {given} is less than \
                 {WATCH_PROGRESS_MIN:?}"
            ));
            etcd.watch_progress = WATCH_PROGRESS_MIN;
        } else {
            etcd.watch_progress = interval;
        }
    }
    etcd.slow_request = match values.duration("warning-unary-request-duration") {
        Duration::ZERO => Duration::from_millis(300),
        given => given,
    };
    etcd.rpc_durations = values.text("metrics") == "extensive";
    if values.duration("compact-hash-check-time").is_zero() {
        return Err(format!(
            "--compact-hash-check-time must be >0 (set to {})",
            values.text("compact-hash-check-time")
        ));
    }
    Ok(())
}

/// The kinds of tokens and the cost of passwords.
fn auth(values: &Values, plan: &mut Plan) -> Result<(), String> {
    match values.text("auth-token").split(',').next().unwrap_or_default() {
        "simple" | "" => {}
        "jwt" => {
            return Err(
                "--auth-token=jwt is not yet supported: use simple tokens (--auth-token=simple)".to_owned(),
            );
        }
        other => return Err(format!("unknown token type {other:?} in --auth-token")),
    }
    let auth = &mut plan.settings.serve.auth;
    // As in etcd 0 stands for the default.
    if let ttl_s @ 1.. = values.number("auth-token-ttl") {
        auth.token_ttl = Duration::from_secs(ttl_s);
    }
    let cost = values.number("bcrypt-cost");
    if BCRYPT_COSTS.contains(&cost) {
        auth.bcrypt_cost = u32::try_from(cost).expect("it is small");
    } else {
        plan.warnings.push(format!(
            "use default bcrypt-cost instead of the invalid given cost: {cost} is not in {BCRYPT_COSTS:?}"
        ));
    }
    Ok(())
}
