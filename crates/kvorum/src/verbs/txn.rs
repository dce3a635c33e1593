//! `txn`: conditions and two lists of operations, read from standard input.
//!
//! The sections come in the order compares, success, failure. They are separated by blank lines, as in
//! etcdctl; or each is headed by its name and a colon (`compares:` or `if:`, `success:` or `then:`,
//! `failure:` or `else:`), and then blank lines mean nothing. `#` starts a comment line.
//!
//! ```text
//! if:
//!   mod("app/leader") = 0
//!   value("app/state") != "stopped"
//! then:
//!   put "app/leader" "node-1"
//! else:
//!   get "app/" --prefix
//! ```

use std::io::{IsTerminal, Read};

use bytes::Bytes;
use clap::Args;
use kvorum_client::prefix_range;
use kvorum_client::proto::etcd::{self, compare, request_op};
use serde_json::json;

use super::record::{Answer, revision};
use super::{ClientArgs, Output, TIMEOUT};
use crate::failure::Failure;

/// Largest text that is read, in bytes: far over what one transaction may hold.
const TEXT_BYTES_MAX: u64 = 16 << 20;

const SYNTAX: &str = r#"Sections, with blank lines between, or headed by their names:
  if:    TARGET(KEY) OP OPERAND      TARGET: value version create mod lease; OP: = != < >
         exists(KEY)   missing(KEY)
  then:  put KEY VALUE | get KEY [--prefix] | del KEY [--prefix]
  else:  the same
Keys and values with spaces or special bytes are quoted: "a b", "tab\t", "\x00"."#;

/// Arguments of `txn`.
#[derive(Args)]
#[command(after_help = SYNTAX)]
pub struct TxnArgs {
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Runs the transaction on standard input.
pub async fn run(args: TxnArgs) -> Result<(), Failure> {
    let client = args.client.client(TIMEOUT)?;
    if std::io::stdin().is_terminal() {
        eprintln!("{SYNTAX}\nEnd with Ctrl-D.");
    }
    let mut bytes = Vec::new();
    let read = std::io::stdin()
        .lock()
        .take(TEXT_BYTES_MAX + 1)
        .read_to_end(&mut bytes);
    read.map_err(|error| {
        Failure::usage(format!(
            "cannot read the transaction: {}",
            crate::failure::os(&error)
        ))
    })?;
    if bytes.len() as u64 > TEXT_BYTES_MAX {
        return Err(Failure::usage("the transaction on standard input is too long"));
    }
    let text = utf8(bytes).map_err(Failure::usage)?;
    let answer = client.txn(parse(&text).map_err(Failure::usage)?).await?;
    let mut out = Output::start();
    let answers: Vec<Answer<'_>> = answer.responses.iter().map(Answer::from).collect();
    if args.client.json() {
        let revision = revision(answer.header.as_ref());
        out.json(&json!({"revision": revision, "succeeded": answer.succeeded, "responses": answers}))?;
    } else {
        out.line(if answer.succeeded { b"SUCCESS" } else { b"FAILURE" })?;
        for answer in &answer.responses {
            print(&mut out, answer)?;
        }
    }
    out.end()
}

/// Text, or the line of the first byte that is none.
fn utf8(bytes: Vec<u8>) -> Result<String, String> {
    String::from_utf8(bytes).map_err(|error| {
        let end = error.utf8_error().valid_up_to();
        let before = error.as_bytes()[..end]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count();
        format!(
            "line {}: not UTF-8; write such bytes in quotes, for example \"\\x{:02x}\"",
            before + 1,
            error.as_bytes()[end]
        )
    })
}

fn print(out: &mut Output, answer: &etcd::ResponseOp) -> Result<(), Failure> {
    use etcd::response_op::Response;
    match &answer.response {
        Some(Response::ResponseRange(range)) => {
            range.kvs.iter().try_for_each(|kv| out.pair(&kv.key, &kv.value))
        }
        Some(Response::ResponsePut(_)) => out.line(b"OK"),
        Some(Response::ResponseDeleteRange(delete)) => out.line(delete.deleted.to_string().as_bytes()),
        Some(Response::ResponseTxn(_)) | None => Ok(()),
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Section {
    Compares,
    Success,
    Failure,
}

/// Parses the whole text.
///
/// # Errors
/// One line with the number of the offending line.
fn parse(text: &str) -> Result<etcd::TxnRequest, String> {
    let mut request = etcd::TxnRequest::default();
    let headed = text.lines().any(|line| header(line).is_some());
    let mut section = Section::Compares;
    let (mut success, mut failure) = (Written::default(), Written::default());
    for (number, line) in text.lines().enumerate() {
        let complain = |what: String| format!("line {}: {what}", number + 1);
        let line = line.trim();
        if let Some(named) = header(line) {
            section = named;
        } else if line.is_empty() {
            section = match section {
                _ if headed => section,
                Section::Compares => Section::Success,
                Section::Success | Section::Failure => Section::Failure,
            };
        } else if !line.starts_with('#') {
            match section {
                Section::Compares => request.compare.push(parse_compare(line).map_err(complain)?),
                Section::Success | Section::Failure => {
                    let (operations, written) = match section {
                        Section::Success => (&mut request.success, &mut success),
                        _ => (&mut request.failure, &mut failure),
                    };
                    let operation = parse_operation(line).map_err(complain)?;
                    written.add(number + 1, &operation).map_err(complain)?;
                    operations.push(operation);
                }
            }
        }
    }
    if request.success.is_empty() && request.failure.is_empty() {
        return Err("the transaction has no operation; see `kvorum txn --help` for its form".to_owned());
    }
    Ok(request)
}

/// What the lines of one list write: a server refuses a key that is put twice, or put and deleted, without saying
/// which.
#[derive(Default)]
struct Written {
    puts: Vec<(usize, Bytes)>,
    /// Ranges in etcd's convention.
    deletes: Vec<(usize, Bytes, Bytes)>,
}

impl Written {
    fn add(&mut self, number: usize, operation: &etcd::RequestOp) -> Result<(), String> {
        let (earlier, key) = match &operation.request {
            Some(request_op::Request::RequestPut(put)) => {
                let key = put.key.clone();
                let putting = self.puts.iter().find(|(_, other)| *other == key);
                let deleting = self
                    .deletes
                    .iter()
                    .find(|(_, start, end)| contains(start, end, &key));
                let earlier = putting
                    .map(|(line, _)| *line)
                    .or(deleting.map(|(line, ..)| *line));
                self.puts.push((number, key.clone()));
                (earlier, key)
            }
            Some(request_op::Request::RequestDeleteRange(delete)) => {
                let (start, end) = (delete.key.clone(), delete.range_end.clone());
                let put = self
                    .puts
                    .iter()
                    .find(|(_, key)| contains(&start, &end, key))
                    .cloned();
                self.deletes.push((number, start, end));
                put.map_or((None, Bytes::new()), |(line, key)| (Some(line), key))
            }
            _ => return Ok(()),
        };
        earlier.map_or(Ok(()), |line| {
            let key = String::from_utf8_lossy(&key);
            Err(format!(
                "line {line} writes the key `{key}` already; one list may write a key only once"
            ))
        })
    }
}

/// Whether a range in etcd's convention holds a key.
fn contains(start: &Bytes, end: &Bytes, key: &Bytes) -> bool {
    match end.as_ref() {
        b"" => key == start,
        b"\0" => key >= start,
        _ => key >= start && key < end,
    }
}

fn header(line: &str) -> Option<Section> {
    match line.trim() {
        "compares:" | "compare:" | "if:" => Some(Section::Compares),
        "success:" | "then:" => Some(Section::Success),
        "failure:" | "else:" => Some(Section::Failure),
        _ => None,
    }
}

/// `mod("k") > 5`, `value("k") = "v"`, `exists("k")`, `missing("k")`.
fn parse_compare(line: &str) -> Result<etcd::Compare, String> {
    const FORM: &str = "write a condition as TARGET(KEY) OP OPERAND, for example mod(\"k\") = 0";
    let (target, rest) = line.split_once('(').ok_or(FORM)?;
    let (key, rest) = take_word(rest.trim_start(), Some(')'))?.ok_or(FORM)?;
    let rest = rest.trim_start().strip_prefix(')').ok_or(FORM)?.trim();
    check_key(&key)?;
    let target = target.trim();
    let (target, operator, operand) = match (target, rest) {
        ("exists", "") => ("create", ">", Bytes::from_static(b"0")),
        ("missing", "") => ("create", "=", Bytes::from_static(b"0")),
        ("exists" | "missing", _) => return Err(format!("nothing may follow {target}(KEY)")),
        _ => {
            let operator = ["!=", "==", "=", ">", "<"]
                .into_iter()
                .find(|op| rest.starts_with(op))
                .ok_or(FORM)?;
            let (operand, left) = take_word(rest[operator.len()..].trim_start(), None)?.ok_or(FORM)?;
            if !left.trim().is_empty() {
                return Err(format!("unexpected `{}` after the operand", left.trim()));
            }
            (target, operator, operand)
        }
    };
    let result = match operator {
        "!=" => compare::CompareResult::NotEqual,
        ">" => compare::CompareResult::Greater,
        "<" => compare::CompareResult::Less,
        _ => compare::CompareResult::Equal,
    };
    use compare::CompareTarget::{Create, Lease, Mod, Value, Version};
    use compare::TargetUnion;
    let number = |radix: u32| {
        let text = std::str::from_utf8(&operand).unwrap_or_default();
        i64::from_str_radix(text, radix).map_err(|_| format!("{target} is compared with a whole number"))
    };
    let (target, union) = match target {
        "value" | "val" => (Value, TargetUnion::Value(operand.clone())),
        "version" | "ver" => (Version, TargetUnion::Version(number(10)?)),
        "create" | "c" => (Create, TargetUnion::CreateRevision(number(10)?)),
        "mod" | "m" => (Mod, TargetUnion::ModRevision(number(10)?)),
        "lease" => (Lease, TargetUnion::Lease(number(16)?)),
        other => {
            return Err(format!(
                "unknown target `{other}`; use value, version, create, mod or lease"
            ));
        }
    };
    Ok(etcd::Compare {
        result: result.into(),
        target: target.into(),
        key,
        target_union: Some(union),
        range_end: Bytes::new(),
    })
}

/// `put k v`, `get k [--prefix]`, `del k [--prefix]`.
fn parse_operation(line: &str) -> Result<etcd::RequestOp, String> {
    let mut words = Vec::new();
    let mut rest = line;
    while let Some((word, left)) = take_word(rest, None)? {
        words.push(word);
        rest = left.trim_start();
    }
    let verb = words[0].clone();
    let prefix = words.len() > 2 && words.last().is_some_and(|word| word.as_ref() == b"--prefix");
    let arguments = &words[1..words.len() - usize::from(prefix)];
    let range = |key: &Bytes| match prefix {
        true => prefix_range(key),
        false => (key.clone(), Bytes::new()),
    };
    let request = match (verb.as_ref(), arguments) {
        (b"put", [key, value]) if !prefix => {
            check_key(key)?;
            request_op::Request::RequestPut(etcd::PutRequest {
                key: key.clone(),
                value: value.clone(),
                ..Default::default()
            })
        }
        (b"get", [key]) => {
            check_key(key)?;
            let (key, range_end) = range(key);
            request_op::Request::RequestRange(etcd::RangeRequest {
                key,
                range_end,
                ..Default::default()
            })
        }
        (b"del", [key]) => {
            check_key(key)?;
            let (key, range_end) = range(key);
            request_op::Request::RequestDeleteRange(etcd::DeleteRangeRequest {
                key,
                range_end,
                prev_kv: false,
            })
        }
        (b"put", _) => return Err("write `put KEY VALUE`, with quotes around what has spaces".to_owned()),
        (b"get" | b"del", _) => {
            let verb = String::from_utf8_lossy(&verb);
            return Err(format!("write `{verb} KEY` or `{verb} KEY --prefix`"));
        }
        (other, _) => {
            return Err(format!(
                "unknown operation `{}`; use put, get or del",
                String::from_utf8_lossy(other)
            ));
        }
    };
    Ok(etcd::RequestOp {
        request: Some(request),
    })
}

fn check_key(key: &Bytes) -> Result<(), String> {
    if key.is_empty() {
        Err("the key is empty".to_owned())
    } else {
        Ok(())
    }
}

/// The next word and what follows it: in double quotes with escapes, in single quotes as it is, or bare up to
/// white space or `stop`.
fn take_word(text: &str, stop: Option<char>) -> Result<Option<(Bytes, &str)>, String> {
    match text.chars().next() {
        None => Ok(None),
        Some('\'') => {
            let (word, rest) = text[1..].split_once('\'').ok_or("a single quote is not closed")?;
            Ok(Some((Bytes::copy_from_slice(word.as_bytes()), rest)))
        }
        Some('"') => take_quoted(&text[1..]).map(Some),
        Some(_) => {
            let end = text
                .find(|c: char| c.is_whitespace() || Some(c) == stop)
                .unwrap_or(text.len());
            Ok(Some((
                Bytes::copy_from_slice(&text.as_bytes()[..end]),
                &text[end..],
            )))
        }
    }
}

fn take_quoted(text: &str) -> Result<(Bytes, &str), String> {
    let mut word = Vec::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((word.into(), &text[at + 1..])),
            '\\' => match chars.next() {
                Some((_, 'n')) => word.push(b'\n'),
                Some((_, 't')) => word.push(b'\t'),
                Some((_, 'r')) => word.push(b'\r'),
                Some((_, '0')) => word.push(0),
                Some((_, c @ ('"' | '\\'))) => word.push(c as u8),
                Some((at, 'x')) => {
                    let byte = text
                        .get(at + 1..at + 3)
                        .and_then(|hex| u8::from_str_radix(hex, 16).ok());
                    word.push(byte.ok_or("\\x takes two hexadecimal digits")?);
                    chars.nth(1);
                }
                _ => return Err("unknown escape; use \\\" \\\\ \\n \\r \\t \\0 or \\xNN".to_owned()),
            },
            _ => word.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    Err("a double quote is not closed".to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use compare::{CompareResult, CompareTarget, TargetUnion};

    #[test]
    fn the_line_that_is_not_utf_8_is_named() {
        let text = "then:\n  put \"ä\" 1\n";
        assert_eq!(utf8(text.as_bytes().to_vec()).unwrap(), text);
        let error = utf8(b"then:\n  put a \xff\n".to_vec()).unwrap_err();
        assert_eq!(
            error,
            r#"line 2: not UTF-8; write such bytes in quotes, for example "\xff""#
        );
    }

    fn put(key: &'static str, value: &'static str) -> etcd::RequestOp {
        let (key, value) = (key.into(), value.into());
        etcd::RequestOp {
            request: Some(request_op::Request::RequestPut(etcd::PutRequest {
                key,
                value,
                ..Default::default()
            })),
        }
    }

    fn compare(
        key: &'static str,
        target: CompareTarget,
        result: CompareResult,
        union: TargetUnion,
    ) -> etcd::Compare {
        etcd::Compare {
            result: result.into(),
            target: target.into(),
            key: key.into(),
            target_union: Some(union),
            range_end: Bytes::new(),
        }
    }

    #[test]
    fn sections_by_blank_lines_as_in_etcdctl() {
        let text = "mod(\"key1\") > \"0\"\n\nput key1 \"overwrote-key1\"\n\nput key1 \"created-key1\"\nput key2 \"x y\"\n";
        let request = parse(text).unwrap();
        let expected = compare(
            "key1",
            CompareTarget::Mod,
            CompareResult::Greater,
            TargetUnion::ModRevision(0),
        );
        assert_eq!(request.compare, [expected]);
        assert_eq!(request.success, [put("key1", "overwrote-key1")]);
        assert_eq!(request.failure, [put("key1", "created-key1"), put("key2", "x y")]);
        let unconditional = parse("\nput a b\n").unwrap();
        assert!(unconditional.compare.is_empty());
        assert_eq!(unconditional.success, [put("a", "b")]);
    }

    #[test]
    fn sections_by_name() {
        let text = "# take the lead\nif:\n  missing(app/leader)\n\n  value('a b') != \"\\x00\\n\"\n\nthen:\n  put app/leader n1\nelse:\n  get app/ --prefix\n  del x\n";
        let request = parse(text).unwrap();
        let absent = compare(
            "app/leader",
            CompareTarget::Create,
            CompareResult::Equal,
            TargetUnion::CreateRevision(0),
        );
        let differs = compare(
            "a b",
            CompareTarget::Value,
            CompareResult::NotEqual,
            TargetUnion::Value(Bytes::from_static(b"\0\n")),
        );
        assert_eq!(request.compare, [absent, differs]);
        assert_eq!(request.success, [put("app/leader", "n1")]);
        match &request.failure[0].request {
            Some(request_op::Request::RequestRange(range)) => {
                assert_eq!(
                    (range.key.as_ref(), range.range_end.as_ref()),
                    (&b"app/"[..], &b"app0"[..])
                );
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(
            &request.failure[1].request,
            Some(request_op::Request::RequestDeleteRange(_))
        ));
    }

    #[test]
    fn mistakes_name_their_line() {
        let check = |text: &str, expected: &str| {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        check("", "no operation");
        let twice = "line 3: line 2 writes the key `a` already";
        check("then:\nput a 1\nput a 2\n", twice);
        check("then:\nput a 1\ndel a\n", twice);
        check("then:\ndel \"\" --prefix\n", "the key is empty");
        check(
            "then:\ndel a --prefix\nput ab 1\n",
            "line 2 writes the key `ab` already",
        );
        assert!(parse("then:\nput a 1\nget a\ndel b\ndel b\nelse:\nput a 2\n").is_ok());
        check("mod(\"k\") = 1\n", "no operation");
        check("then:\nput a\n", "line 2: write `put KEY VALUE`");
        check("then:\nput a b c\n", "line 2: write `put KEY VALUE`");
        check("then:\nfrob a\n", "line 2: unknown operation `frob`");
        check("then:\nget\n", "line 2: write `get KEY`");
        check("then:\nput \"\" b\n", "line 2: the key is empty");
        check("then:\nput \"a b\n", "line 2: a double quote is not closed");
        check("then:\nput \"\\q\" b\n", "line 2: unknown escape");
        check("then:\nput \"\\x0g\" b\n", "line 2: \\x takes two");
        check("if:\nfoo(k) = 1\nthen:\nput a b", "line 2: unknown target `foo`");
        check(
            "if:\nmod(k) = x\nthen:\nput a b",
            "line 2: mod is compared with a whole number",
        );
        check("if:\nmod(k) 1\nthen:\nput a b", "line 2: write a condition");
        check("if:\nmod k = 1\nthen:\nput a b", "line 2: write a condition");
        check("if:\nmod(k = 1\nthen:\nput a b", "line 2: write a condition");
        check("if:\nmod(k) = 1 2\nthen:\nput a b", "line 2: unexpected `2`");
        check("if:\nexists(k) = 1\nthen:\nput a b", "line 2: nothing may follow");
    }
}
