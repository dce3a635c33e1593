//! Messages as protobuf's JSON, the way of etcd's gateway: names as in the `.proto` files (others are taken, too),
//! nothing for what is empty, 64-bit numbers as strings, bytes in base64, enums by name; unknown fields are passed
//! over.
//!
//! A field that is given twice, under whichever of its names, is refused: which one counts would be anybody's guess.
//!
//! Nesting is bounded by serde_json (128 levels), and what is unknown is skipped without recursion.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::collections::BTreeSet;
use std::fmt;

use prost_reflect::{DeserializeOptions, DynamicMessage, Kind, MessageDescriptor, SerializeOptions};
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Deserializer;
use tonic::Status;

/// Reads the message that `json` begins with; what follows it is not looked at. Nothing at all is an empty message.
pub(super) fn read(descriptor: &MessageDescriptor, json: &[u8]) -> Result<DynamicMessage, Status> {
    if json.iter().all(u8::is_ascii_whitespace) {
        return Ok(DynamicMessage::new(descriptor.clone()));
    }
    let refused = |error: serde_json::Error| {
        Status::invalid_argument(format!("the body is not a {}: {error}", descriptor.name()))
    };
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    let mut deserializer = Deserializer::from_slice(json);
    let message = DynamicMessage::deserialize_with_options(descriptor.clone(), &mut deserializer, &options);
    let message = message.map_err(refused)?;
    // The reader above takes the last of several.
    let once = OnlyOnce(descriptor.clone()).deserialize(&mut Deserializer::from_slice(json));
    once.map_err(refused)?;
    Ok(message)
}

/// Passes over a message's JSON and fails where a field is given twice. What it is not is for the reader to say.
struct OnlyOnce(MessageDescriptor);

impl<'de> DeserializeSeed<'de> for OnlyOnce {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for OnlyOnce {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a {}", self.0.name())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    /// The elements of a repeated field.
    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        while elements.next_element_seed(OnlyOnce(self.0.clone()))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        let mut seen = BTreeSet::new();
        while let Some(name) = fields.next_key::<String>()? {
            let field = self.0.get_field_by_json_name(&name);
            let Some(field) = field.or_else(|| self.0.get_field_by_name(&name)) else {
                fields.next_value::<IgnoredAny>()?;
                continue;
            };
            if !seen.insert(field.number()) {
                return Err(A::Error::custom(format_args!(
                    "the field `{name}` is given twice"
                )));
            }
            match field.kind() {
                Kind::Message(descriptor) if !field.is_map() => {
                    fields.next_value_seed(OnlyOnce(descriptor))?
                }
                _ => drop(fields.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// Writes a message between `before` and `after`.
pub(super) fn write(message: &DynamicMessage, before: &str, after: &str) -> Bytes {
    let options = SerializeOptions::new()
        .stringify_64_bit_integers(true)
        .use_proto_field_name(true)
        .skip_default_fields(true);
    let mut out = BytesMut::new();
    out.put_slice(before.as_bytes());
    let mut writer = out.writer();
    let mut serializer = serde_json::Serializer::new(&mut writer);
    message
        .serialize_with_options(&mut serializer, &options)
        .expect("a message has only what JSON has, and memory takes what is written");
    let mut out = writer.into_inner();
    out.put_slice(after.as_bytes());
    out.freeze()
}

/// Cuts a stream of bytes into the JSON objects that it holds one after the other.
#[derive(Debug)]
pub(super) struct Objects {
    waiting: BytesMut,
    /// How far `waiting` was looked at, and what is open there.
    looked_at: usize,
    depth: usize,
    in_string: bool,
    after_backslash: bool,
    bytes_max: usize,
}

impl Objects {
    /// Takes objects of at most so many bytes.
    pub(super) fn new(bytes_max: usize) -> Self {
        Objects {
            waiting: BytesMut::new(),
            looked_at: 0,
            depth: 0,
            in_string: false,
            after_backslash: false,
            bytes_max,
        }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.waiting.extend_from_slice(bytes);
    }

    /// The next object, if it is complete. Whether it is JSON is for its reader to say.
    ///
    /// # Errors
    /// What comes next is no object, or too long.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, Status> {
        if self.looked_at == 0 {
            let space = self
                .waiting
                .iter()
                .take_while(|byte| byte.is_ascii_whitespace())
                .count();
            self.waiting.advance(space);
            if self.waiting.first().is_some_and(|byte| *byte != b'{') {
                return Err(Status::invalid_argument("the body is not a row of JSON objects"));
            }
        }
        while let Some(byte) = self.waiting.get(self.looked_at) {
            self.looked_at += 1;
            match (self.in_string, byte) {
                (true, _) if self.after_backslash => self.after_backslash = false,
                (true, b'\\') => self.after_backslash = true,
                (_, b'"') => self.in_string = !self.in_string,
                (false, b'{' | b'[') => self.depth += 1,
                (false, b'}' | b']') => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        let object = self.waiting.split_to(std::mem::take(&mut self.looked_at));
                        return Ok(Some(object.freeze()));
                    }
                }
                _ => {}
            }
        }
        match self.waiting.len() > self.bytes_max {
            true => Err(Status::resource_exhausted(format!(
                "a request is larger than {} bytes",
                self.bytes_max
            ))),
            false => Ok(None),
        }
    }

    /// Whether nothing is left of what was pushed.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.iter().all(u8::is_ascii_whitespace)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use prost_reflect::DescriptorPool;

    use super::*;

    fn descriptor(name: &str) -> MessageDescriptor {
        let pool = DescriptorPool::decode(kvorum_proto::DESCRIPTORS).unwrap();
        pool.get_message_by_name(name).unwrap()
    }

    /// What a message is read from, and how it is written.
    #[track_caller]
    fn check(name: &str, json: &str, expected: &str) {
        let message = read(&descriptor(name), json.as_bytes()).unwrap();
        assert_eq!(write(&message, "", ""), expected, "{json}");
    }

    #[test]
    fn messages_are_read_generously_and_written_in_one_way() {
        let put = "etcdserverpb.PutRequest";
        check(put, "", "{}");
        check(put, " \r\n", "{}");
        check(
            put,
            r#"{"key":"Zm9v","value":"YmFy"} and more"#,
            r#"{"key":"Zm9v","value":"YmFy"}"#,
        );
        // Both alphabets, with and without padding.
        for bytes in ["+/8=", "-_8=", "-_8", "+/8"] {
            check(put, &format!(r#"{{"key":"{bytes}"}}"#), r#"{"key":"+/8="}"#);
        }
        for number in ["7", "\"7\"", "7.0", "7e0"] {
            check(put, &format!(r#"{{"lease":{number}}}"#), r#"{"lease":"7"}"#);
        }
        check(
            put,
            r#"{"lease":"-9223372036854775808"}"#,
            r#"{"lease":"-9223372036854775808"}"#,
        );
        check(
            put,
            r#"{"prevKv":true,"ignore_value":false}"#,
            r#"{"prev_kv":true}"#,
        );
        check(put, r#"{"key":null,"nobody":{"knows":[1,{}]}}"#, "{}");
        let range = "etcdserverpb.RangeRequest";
        for order in ["\"DESCEND\"", "2"] {
            check(
                range,
                &format!(r#"{{"sort_order":{order}}}"#),
                r#"{"sort_order":"DESCEND"}"#,
            );
        }
        // A number that has no name, and a name that nobody knows.
        check(range, r#"{"sort_order":9}"#, r#"{"sort_order":9}"#);
        check(range, r#"{"sort_order":"SIDEWAYS"}"#, "{}");
        check(
            "etcdserverpb.MemberAddRequest",
            r#"{"peerURLs":["http://a:1"]}"#,
            r#"{"peerURLs":["http://a:1"]}"#,
        );
        check(
            "etcdserverpb.TxnRequest",
            r#"{"compare":[{"target":"CREATE","key":"YQ==","createRevision":"0"}],"success":[{"request_put":{"key":"YQ=="}}]}"#,
            r#"{"compare":[{"target":"CREATE","key":"YQ==","create_revision":"0"}],"success":[{"request_put":{"key":"YQ=="}}]}"#,
        );
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let deep = |open: &str, close: &str| format!("{}{}", open.repeat(10_000), close.repeat(10_000));
        let txn = format!(
            r#"{{"success":[{}]}}"#,
            deep(r#"{"request_txn":{"success":["#, "]}}")
        );
        for (name, json) in [
            ("etcdserverpb.PutRequest", "{"),
            ("etcdserverpb.PutRequest", "[]"),
            ("etcdserverpb.PutRequest", "\"key\""),
            ("etcdserverpb.PutRequest", "7"),
            ("etcdserverpb.PutRequest", "\u{0}"),
            ("etcdserverpb.PutRequest", r#"{"key":7}"#),
            ("etcdserverpb.PutRequest", r#"{"key":"*"}"#),
            ("etcdserverpb.PutRequest", r#"{"key":"Zm9v"#),
            ("etcdserverpb.PutRequest", r#"{"lease":"9223372036854775808"}"#),
            ("etcdserverpb.PutRequest", r#"{"lease":9223372036854775808}"#),
            ("etcdserverpb.PutRequest", r#"{"lease":1e19}"#),
            ("etcdserverpb.PutRequest", r#"{"lease":1.5}"#),
            ("etcdserverpb.PutRequest", r#"{"lease":true}"#),
            ("etcdserverpb.PutRequest", r#"{"prev_kv":"true"}"#),
            ("etcdserverpb.RangeRequest", r#"{"sort_order":2147483648}"#),
            ("etcdserverpb.HashKVResponse", r#"{"hash":-1}"#),
            // Twice: under one name, under both, empty, in what is nested, of a oneof.
            ("etcdserverpb.PutRequest", r#"{"key":"YQ==","key":"Yg=="}"#),
            ("etcdserverpb.PutRequest", r#"{"key":"YQ==","key":"YQ=="}"#),
            ("etcdserverpb.PutRequest", r#"{"prev_kv":true,"prevKv":true}"#),
            ("etcdserverpb.PutRequest", r#"{"key":null,"key":"YQ=="}"#),
            ("etcdserverpb.TxnRequest", r#"{"success":[],"success":[]}"#),
            (
                "etcdserverpb.TxnRequest",
                r#"{"success":[{},{"request_put":{"key":"YQ==","key":"Yg=="}}]}"#,
            ),
            (
                "etcdserverpb.WatchRequest",
                r#"{"create_request":{"key":"YQ=="},"createRequest":{"key":"YQ=="}}"#,
            ),
            (
                "etcdserverpb.WatchRequest",
                r#"{"create_request":{"key":"YQ=="},"cancel_request":{"watch_id":1}}"#,
            ),
            ("etcdserverpb.TxnRequest", &txn),
            ("etcdserverpb.TxnRequest", &deep("[", "]")),
        ] {
            let status = read(&descriptor(name), json.as_bytes()).unwrap_err();
            let words: String = json.chars().take(60).collect();
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{words}");
        }
        // What nobody knows may be as deep as it likes.
        let unknown = format!(r#"{{"unknown":{}}}"#, deep("[", "]"));
        read(&descriptor("etcdserverpb.PutRequest"), unknown.as_bytes()).unwrap();
        // And be there as often as it likes.
        check(
            "etcdserverpb.PutRequest",
            r#"{"a":1,"key":"YQ==","a":[{"key":1,"key":2}]}"#,
            r#"{"key":"YQ=="}"#,
        );
    }

    #[test]
    fn objects_are_cut_out_wherever_the_stream_is_torn() {
        let text = " {\"a\":\"}\\\"{\\\\\"}\n{}{\"b\":[{},[1]]} ";
        let expected = ["{\"a\":\"}\\\"{\\\\\"}", "{}", "{\"b\":[{},[1]]}"];
        for size in 1..=text.len() {
            let (mut objects, mut found) = (Objects::new(100), Vec::new());
            for piece in text.as_bytes().chunks(size) {
                objects.push(piece);
                while let Some(object) = objects.next().unwrap() {
                    found.push(object);
                }
            }
            assert_eq!(found, expected, "in pieces of {size}");
            assert!(objects.is_empty());
        }
        let fails = |text: &[u8]| {
            let mut objects = Objects::new(10);
            objects.push(text);
            objects.next().unwrap_err().code()
        };
        assert_eq!(fails(b"[{}]"), tonic::Code::InvalidArgument);
        assert_eq!(fails(b" x"), tonic::Code::InvalidArgument);
        assert_eq!(fails(b"}"), tonic::Code::InvalidArgument);
        assert_eq!(fails(b"{\"a\":\"01234567"), tonic::Code::ResourceExhausted);
        let mut deep = Objects::new(1 << 20);
        deep.push("{[".repeat(10_000).as_bytes());
        assert!(deep.next().unwrap().is_none() && !deep.is_empty());
    }
}
