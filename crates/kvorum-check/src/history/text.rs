//! Byte strings in JSON: a string where the bytes are UTF-8, `{"hex":"00ff"}` otherwise.

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Form {
    Text(String),
    Hex { hex: String },
}

impl From<&Bytes> for Form {
    fn from(bytes: &Bytes) -> Form {
        match std::str::from_utf8(bytes) {
            Ok(text) => Form::Text(text.to_string()),
            Err(_) => Form::Hex {
                hex: bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
            },
        }
    }
}

impl Form {
    fn bytes<E: Error>(self) -> Result<Bytes, E> {
        let hex = match self {
            Form::Text(text) => return Ok(text.into()),
            Form::Hex { hex } => hex,
        };
        let digit = |byte: &u8| char::from(*byte).to_digit(16).map(|digit| digit as u8);
        hex.as_bytes()
            .chunks(2)
            .map(|pair| match pair {
                [high, low] => Some(digit(high)? << 4 | digit(low)?),
                _ => None,
            })
            .collect::<Option<Vec<u8>>>()
            .map(Bytes::from)
            .ok_or_else(|| E::custom("an even number of hexadecimal digits expected"))
    }
}

pub(super) fn serialize<S: Serializer>(bytes: &Bytes, to: S) -> Result<S::Ok, S::Error> {
    Form::from(bytes).serialize(to)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
    Form::deserialize(from)?.bytes()
}

pub(super) mod optional {
    use super::*;

    pub(in super::super) fn serialize<S: Serializer>(
        bytes: &Option<Bytes>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        bytes.as_ref().map(Form::from).serialize(to)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Bytes>, D::Error> {
        Option::<Form>::deserialize(from)?.map(Form::bytes).transpose()
    }
}
