//! Records as JSON: what the commands print, and the lines of export files.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use kvorum_client::proto::{etcd, mvcc};
use serde::{Deserialize, Serialize, Serializer};

/// A key, or a value, as one field of two possible names.
fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

fn base64(bytes: &[u8]) -> Option<String> {
    text(bytes).is_none().then(|| STANDARD.encode(bytes))
}

/// A line of an export: key and value, as text, or in base64 where they are not UTF-8.
#[derive(Serialize)]
pub struct ExportLine<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key_b64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_b64: Option<String>,
}

impl<'a> ExportLine<'a> {
    /// The line of this record.
    pub fn new(key: &'a [u8], value: &'a [u8]) -> Self {
        ExportLine {
            key: text(key),
            key_b64: base64(key),
            value: text(value),
            value_b64: base64(value),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object with key and value")]
struct ImportLine<'a> {
    #[serde(borrow, default)]
    key: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    key_b64: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    value: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    value_b64: Option<Cow<'a, str>>,
}

/// Reads a line of an export file.
///
/// # Errors
/// What is wrong with it, without the line's number.
pub fn parse_line(line: &[u8]) -> Result<(Bytes, Bytes), String> {
    let line: ImportLine<'_> = serde_json::from_slice(line).map_err(|error| {
        let text = error.to_string();
        let what = text
            .rsplit_once(" at line ")
            .map_or(text.as_str(), |(what, _)| what);
        match error.is_data() {
            true => format!("{what} (column {})", error.column()),
            false => format!("not a JSON object: {what} (column {})", error.column()),
        }
    })?;
    let key = field("key", line.key, line.key_b64)?;
    if key.is_empty() {
        return Err("the key is empty".to_owned());
    }
    Ok((key, field("value", line.value, line.value_b64)?))
}

fn field(name: &str, text: Option<Cow<'_, str>>, base64: Option<Cow<'_, str>>) -> Result<Bytes, String> {
    match (text, base64) {
        (Some(text), None) => Ok(text.into_owned().into()),
        (None, Some(base64)) => {
            let decoded = STANDARD.decode(base64.as_bytes());
            decoded
                .map(Bytes::from)
                .map_err(|_| format!("`{name}_b64` is not base64"))
        }
        (None, None) => Err(format!("it has neither `{name}` nor `{name}_b64`")),
        (Some(_), Some(_)) => Err(format!("it has both `{name}` and `{name}_b64`")),
    }
}

/// A record with everything that is known of it.
#[derive(Serialize)]
pub struct Record<'a> {
    #[serde(flatten)]
    line: ExportLine<'a>,
    create_revision: i64,
    mod_revision: i64,
    version: i64,
    #[serde(skip_serializing_if = "is_zero")]
    lease: i64,
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

impl<'a> From<&'a mvcc::KeyValue> for Record<'a> {
    fn from(kv: &'a mvcc::KeyValue) -> Self {
        Record {
            line: ExportLine::new(&kv.key, &kv.value),
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
            lease: kv.lease,
        }
    }
}

impl<'a> Record<'a> {
    /// Without the value, which was not asked for.
    pub fn without_value(kv: &'a mvcc::KeyValue) -> Self {
        let mut record = Record::from(kv);
        record.line.value = None;
        record
    }
}

/// Records where the protocol has them.
pub fn records(kvs: &[mvcc::KeyValue]) -> Vec<Record<'_>> {
    kvs.iter().map(Record::from).collect()
}

/// The revision in an answer's header; 0 without one.
pub fn revision(header: Option<&etcd::ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

/// The answer to one operation of a transaction, or to a command of its own.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer<'a> {
    Range {
        count: i64,
        more: bool,
        kvs: Vec<Record<'a>>,
    },
    Put {
        #[serde(skip_serializing_if = "Option::is_none")]
        prev_kv: Option<Record<'a>>,
    },
    Delete {
        deleted: i64,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        prev_kvs: Vec<Record<'a>>,
    },
    Txn {
        succeeded: bool,
        responses: Vec<Answer<'a>>,
    },
    /// Of a kind that this program does not know.
    #[serde(serialize_with = "unknown")]
    Unknown(),
}

fn unknown<S: Serializer>(serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_none()
}

impl<'a> From<&'a etcd::ResponseOp> for Answer<'a> {
    fn from(answer: &'a etcd::ResponseOp) -> Self {
        use etcd::response_op::Response;
        match &answer.response {
            Some(Response::ResponseRange(range)) => Answer::Range {
                count: range.count,
                more: range.more,
                kvs: records(&range.kvs),
            },
            Some(Response::ResponsePut(put)) => Answer::Put {
                prev_kv: put.prev_kv.as_ref().map(Record::from),
            },
            Some(Response::ResponseDeleteRange(delete)) => Answer::Delete {
                deleted: delete.deleted,
                prev_kvs: records(&delete.prev_kvs),
            },
            Some(Response::ResponseTxn(txn)) => Answer::Txn {
                succeeded: txn.succeeded,
                responses: txn.responses.iter().map(Answer::from).collect(),
            },
            None => Answer::Unknown(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lines_survive_the_round_trip() {
        let check = |key: &[u8], value: &[u8], expected: &str| {
            let line = serde_json::to_string(&ExportLine::new(key, value)).unwrap();
            assert_eq!(line, expected);
            let (k, v) = parse_line(line.as_bytes()).unwrap();
            assert_eq!((k.as_ref(), v.as_ref()), (key, value));
        };
        check(b"k", b"v", r#"{"key":"k","value":"v"}"#);
        check(
            b"a\"b\n",
            "\u{1f980}\0".as_bytes(),
            "{\"key\":\"a\\\"b\\n\",\"value\":\"\u{1f980}\\u0000\"}",
        );
        check(b"k", b"", r#"{"key":"k","value":""}"#);
        check(b"\xff\x00", b"v", r#"{"key_b64":"/wA=","value":"v"}"#);
        check(b"k", b"\xff", r#"{"key":"k","value_b64":"/w=="}"#);
    }

    #[test]
    fn malformed_lines_say_what_is_wrong() {
        let check = |line: &[u8], expected: &str| {
            let error = parse_line(line).unwrap_err();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains('\n'), "{error}");
        };
        check(b"", "not a JSON object");
        check(b"k v", "not a JSON object");
        check(b"[1]", "column");
        check(b"{\"key\":\"k\",\"value\":\"v\"} x", "not a JSON object");
        check(br#"{"key":"k"}"#, "neither `value` nor `value_b64`");
        check(br#"{"value":"v"}"#, "neither `key` nor `key_b64`");
        check(br#"{"key":"","value":"v"}"#, "the key is empty");
        check(
            br#"{"key":"k","key_b64":"aw==","value":"v"}"#,
            "both `key` and `key_b64`",
        );
        check(br#"{"key":"k","value":1}"#, "invalid type");
        check(br#"{"key":"k","value":"v","lease":1}"#, "unknown field `lease`");
        check(br#"{"key":"k","value_b64":"*"}"#, "not base64");
        check(b"{\"key\":\"\xff\",\"value\":\"v\"}", "not a JSON object");
    }
}
