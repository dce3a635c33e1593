//! What a command line means that names no command: `serve`, in the words of the systems that never had one.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use super::REPLACED;
use crate::etcd;

/// Arguments of the program itself, not of `serve`.
const OWN: [&str; 4] = ["-h", "--help", "-V", "--version"];
/// Any of these variables makes a bare call a start.
const STARTERS: [&str; 2] = ["RAFT_ID", "SERVICE_RAFT_NODE_ID"];

/// Puts the word `serve` where its users leave it out: started under a replaced program's name, with a first
/// argument that begins with `-`, or with none while a variable of [`STARTERS`] is set (`is_set`). Long flags of
/// `serve` and `config` may then have one dash, as in Go.
pub fn arguments(mut args: Vec<OsString>, is_set: impl Fn(&str) -> bool) -> Vec<OsString> {
    let name = args
        .first()
        .and_then(|program| Path::new(program).file_name()?.to_str());
    if name == Some(etcd::NAME) {
        args.insert(1, etcd::NAME.into());
        return args;
    }
    let replaced = REPLACED.into_iter().find(|replaced| name == Some(*replaced));
    let asks_itself = |arg: &OsString| OWN.iter().any(|own| arg == own);
    let serves = match args.get(1) {
        None => replaced.is_some() || STARTERS.iter().any(|name| is_set(name)),
        Some(first) if asks_itself(first) => replaced.is_some() && first != "-V" && first != "--version",
        Some(first) => first.as_bytes().starts_with(b"-"),
    };
    if serves {
        args.insert(1, "serve".into());
    }
    let Some(command) = args.get(1).cloned() else {
        return args;
    };
    if command == "serve" {
        for arg in &mut args[2..] {
            double_dash(arg);
        }
    }
    if let Some(replaced) = replaced
        && (command == "serve" || command == "config")
    {
        args.insert(2, format!("--started-as={replaced}").into());
    }
    args
}

/// `-flag` and `-flag=value` as `--flag`; single letters stay.
fn double_dash(arg: &mut OsString) {
    if let [b'-', first, _, ..] = arg.as_bytes()
        && first.is_ascii_alphabetic()
    {
        *arg = OsString::from_vec([b"-", arg.as_bytes()].concat());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, set: &[&str], expected: &str) {
        let args = line.split(' ').map(OsString::from).collect();
        let found = arguments(args, |name| set.contains(&name));
        let found: Vec<_> = found.iter().map(|arg| arg.to_string_lossy()).collect();
        assert_eq!(found.join(" "), expected);
    }

    #[test]
    fn serve_is_put_where_it_is_left_out() {
        check("kvorum", &[], "kvorum");
        check("kvorum", &["RAFT_ID"], "kvorum serve");
        check("kvorum", &["SERVICE_RAFT_NODE_ID"], "kvorum serve");
        check("kvorum status", &["RAFT_ID"], "kvorum status");
        check("kvorum --env-file .env1", &[], "kvorum serve --env-file .env1");
        check("kvorum -id=a -port 1", &[], "kvorum serve --id=a --port 1");
        check(
            "raft-kv-store",
            &[],
            "raft-kv-store serve --started-as=raft-kv-store",
        );
        check(
            "./bin/raft-kv-store --id=a",
            &[],
            "./bin/raft-kv-store serve --started-as=raft-kv-store --id=a",
        );
        check(
            "/x/raft-kv",
            &["RAFT_ID"],
            "/x/raft-kv serve --started-as=raft-kv",
        );
    }

    #[test]
    fn what_is_called_etcd_takes_etcds_flags() {
        check("etcd", &["RAFT_ID"], "etcd etcd");
        check(
            "/usr/bin/etcd -name a --version",
            &[],
            "/usr/bin/etcd etcd -name a --version",
        );
        check("kvorum etcd -name a", &[], "kvorum etcd -name a");
        check("etcdctl get", &[], "etcdctl get");
    }

    #[test]
    fn commands_help_and_short_flags_stay() {
        check("kvorum --help", &["RAFT_ID"], "kvorum --help");
        check("kvorum -V", &[], "kvorum -V");
        check("kvorum put -k v", &[], "kvorum put -k v");
        check("kvorum serve -name a -h", &[], "kvorum serve --name a -h");
        check("raft-kv-store status", &[], "raft-kv-store status");
        check(
            "raft-kv-store config -o json",
            &[],
            "raft-kv-store config --started-as=raft-kv-store -o json",
        );
        check(
            "raft-kv-store -help",
            &[],
            "raft-kv-store serve --started-as=raft-kv-store --help",
        );
        check(
            "raft-kv-store --help",
            &[],
            "raft-kv-store serve --started-as=raft-kv-store --help",
        );
        check("raft-kv-store --version", &[], "raft-kv-store --version");
    }
}
