//! The messages' bytes, written and read in place: protobuf, and the keys and values of which they are made.

/// Bytes of a value that hold its key's number and its sequence number.
pub const VALUE_HEAD: usize = 16;

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The bytes of a value behind its head.
fn fill(key: u64, sequence: u64) -> impl Iterator<Item = [u8; 8]> {
    let mut state = key.rotate_left(32) ^ sequence;
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(state).to_le_bytes()
    })
}

/// Appends the value of this key that has this sequence number.
pub fn push_value(out: &mut Vec<u8>, key: u64, sequence: u64, size: usize) {
    let end = out.len() + size;
    out.extend_from_slice(&key.to_le_bytes());
    out.extend_from_slice(&sequence.to_le_bytes());
    let mut fill = fill(key, sequence);
    while out.len() < end {
        out.extend_from_slice(&fill.next().expect("it is endless"));
    }
    out.truncate(end);
}

/// Whether a value is one that was made for this key.
pub fn is_value(value: &[u8], key: u64, size: usize) -> bool {
    let Some((head, rest)) = value.split_at_checked(VALUE_HEAD) else {
        return false;
    };
    let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
    value.len() == size
        && number(0) == key
        && rest
            .chunks(8)
            .zip(fill(key, number(8)))
            .all(|(found, made)| found == &made[..found.len()])
}

const KEY_PREFIX: &[u8] = b"bench/";
/// Shortest key: the prefix and as many digits as any number of keys takes.
pub const KEY_SIZE_MIN: usize = 20;

/// Appends the key of this number.
pub fn push_key(out: &mut Vec<u8>, key: u64, size: usize) {
    let start = out.len();
    out.extend_from_slice(KEY_PREFIX);
    out.resize(start + size, b'0');
    let mut rest = key;
    for digit in out[start + KEY_PREFIX.len()..].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
}

/// Bytes that `push_varint` appends.
pub fn varint_length(value: u64) -> usize {
    (70 - (value | 1).leading_zeros() as usize) / 7
}

/// Appends a number as protobuf does.
pub fn push_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Bytes of a `PutRequest`.
pub fn put_length(key_size: usize, value_size: usize) -> usize {
    2 + varint_length(key_size as u64) + varint_length(value_size as u64) + key_size + value_size
}

/// Appends the `PutRequest` of this key with the value of this sequence number.
pub fn push_put(out: &mut Vec<u8>, key: u64, sequence: u64, key_size: usize, value_size: usize) {
    out.push(0x0a);
    push_varint(out, key_size as u64);
    push_key(out, key, key_size);
    out.push(0x12);
    push_varint(out, value_size as u64);
    push_value(out, key, sequence, value_size);
}

/// The field of this number that holds these bytes.
pub fn delimited(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    push_varint(&mut out, bytes.len() as u64);
    out.extend_from_slice(bytes);
    out
}

/// The revision in the header of any answer.
pub fn header_revision(message: &[u8]) -> Result<i64, String> {
    for (number, field) in Fields(message) {
        if let (1, Field::Bytes(header)) = (number, field?) {
            return varint_field(header, 3);
        }
    }
    Err("an answer without a header".to_owned())
}

/// A text among the fields of a message; empty if it is not there.
pub fn text_field(message: &[u8], wanted: u64) -> Result<String, String> {
    for (number, field) in Fields(message) {
        match field? {
            Field::Bytes(text) if number == wanted => return Ok(String::from_utf8_lossy(text).into_owned()),
            _ => {}
        }
    }
    Ok(String::new())
}

/// A number among the fields of a message; 0 if it is not there.
pub fn varint_field(message: &[u8], wanted: u64) -> Result<i64, String> {
    for (number, field) in Fields(message) {
        match field? {
            Field::Varint(value) if number == wanted => return Ok(value as i64),
            _ => {}
        }
    }
    Ok(0)
}

/// What a field holds.
pub enum Field<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    /// Of a fixed size; none that matters here.
    Fixed,
}

/// The fields of a protobuf message. Ends after the first malformed one.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, Result<Field<'a>, String>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        let (number, field) = field.map_or((0, Err("a malformed answer".to_owned())), |(n, field)| {
            (n, Ok(field))
        });
        Some((number, field))
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u64, Field<'a>)> {
        let tag = self.varint()?;
        let field = match tag & 7 {
            0 => Field::Varint(self.varint()?),
            1 => self.take(8).map(|_| Field::Fixed)?,
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Field::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Field::Fixed)?,
            _ => return None,
        };
        Some((tag >> 3, field))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for (at, byte) in self.0.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * at).min(63);
            if byte & 0x80 == 0 {
                self.0 = &self.0[at + 1..];
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_are_made_and_recognised() {
        let mut key = Vec::new();
        push_key(&mut key, 1234, 32);
        assert_eq!(key, b"bench/00000000000000000000001234");
        for size in [16, 17, 24, 50, 256] {
            let mut value = Vec::new();
            push_value(&mut value, 5, 9, size);
            assert!(is_value(&value, 5, size));
            assert!(!is_value(&value, 6, size));
            assert!(!is_value(&value, 5, size + 1));
            if size > VALUE_HEAD {
                *value.last_mut().unwrap() ^= 1;
                assert!(!is_value(&value, 5, size));
            }
        }
        for (value, length) in [
            (0, 1),
            (127, 1),
            (128, 2),
            (16_383, 2),
            (16_384, 3),
            (u64::MAX, 10),
        ] {
            let mut out = Vec::new();
            push_varint(&mut out, value);
            assert_eq!((varint_length(value), out.len()), (length, length));
        }
    }
}
