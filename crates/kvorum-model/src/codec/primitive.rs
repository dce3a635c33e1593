//! Integers, byte strings and lists.

use bytes::Bytes;

use super::DecodeError;

/// Where encoded bytes go.
pub(super) trait Sink {
    fn put(&mut self, bytes: &[u8]);

    fn u8(&mut self, value: u8) {
        self.put(&[value]);
    }
    fn u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }
    fn u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }
    fn i64(&mut self, value: i64) {
        self.put(&value.to_le_bytes());
    }
    fn u128(&mut self, value: u128) {
        self.put(&value.to_le_bytes());
    }
    fn count(&mut self, count: usize) {
        self.u32(u32::try_from(count).expect("no list or string reaches 4 GiB: requests are limited to MiB"));
    }
    fn bytes(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.put(bytes);
    }
    fn list<T>(&mut self, items: &[T], each: impl Fn(&mut Self, &T)) {
        self.count(items.len());
        for item in items {
            each(self, item);
        }
    }
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Counts instead of writing.
pub(super) struct Counter(pub usize);

impl Sink for Counter {
    fn put(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }
}

/// Reads from shared bytes without copying.
pub(super) struct Reader {
    bytes: Bytes,
    at: usize,
}

impl Reader {
    pub fn new(bytes: Bytes, at: usize) -> Self {
        debug_assert!(at <= bytes.len());
        Reader { bytes, at }
    }

    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub fn malformed(&self, what: &'static str) -> DecodeError {
        DecodeError::Malformed { at: self.at, what }
    }

    pub fn finish(self) -> Result<(), DecodeError> {
        if self.remaining() == 0 {
            Ok(())
        } else {
            Err(self.malformed("bytes follow the end"))
        }
    }

    fn advance(&mut self, length: usize, what: &'static str) -> Result<usize, DecodeError> {
        if length > self.remaining() {
            return Err(DecodeError::Truncated {
                at: self.bytes.len(),
                what,
            });
        }
        let at = self.at;
        self.at += length;
        Ok(at)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        let at = self.advance(N, what)?;
        Ok(self.bytes[at..at + N].try_into().expect("N bytes"))
    }

    pub fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        Ok(self.array::<1>(what)?[0])
    }

    pub fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub fn u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    pub fn i64(&mut self, what: &'static str) -> Result<i64, DecodeError> {
        Ok(i64::from_le_bytes(self.array(what)?))
    }

    pub fn u128(&mut self, what: &'static str) -> Result<u128, DecodeError> {
        Ok(u128::from_le_bytes(self.array(what)?))
    }

    pub fn bytes(&mut self, what: &'static str) -> Result<Bytes, DecodeError> {
        let length = self.u32(what)? as usize;
        let at = self.advance(length, what)?;
        // An empty slice would keep the whole input alive for nothing.
        Ok(if length == 0 {
            Bytes::new()
        } else {
            self.bytes.slice(at..at + length)
        })
    }

    pub fn string(&mut self, what: &'static str) -> Result<String, DecodeError> {
        let at = self.at;
        let bytes = self.bytes(what)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| DecodeError::Malformed {
            at,
            what: "text is not UTF-8",
        })
    }

    pub fn version(&mut self, known: u8, what: &'static str) -> Result<(), DecodeError> {
        match self.u8(what)? {
            0 => Err(self.malformed("format version 0")),
            version if version > known => Err(DecodeError::Newer {
                what,
                value: version.into(),
            }),
            _ => Ok(()),
        }
    }

    /// A byte of flags, of which only `known` may be set.
    pub fn flags(&mut self, known: u8, what: &'static str) -> Result<u8, DecodeError> {
        let flags = self.u8(what)?;
        if flags & !known != 0 {
            Err(DecodeError::Newer {
                what,
                value: flags.into(),
            })
        } else {
            Ok(flags)
        }
    }

    /// A number that is written only where it is not zero, as `flag` says.
    pub fn optional(&mut self, present: bool, what: &'static str) -> Result<i64, DecodeError> {
        if !present {
            return Ok(0);
        }
        match self.i64(what)? {
            0 => Err(self.malformed("a zero is left out, not written")),
            value => Ok(value),
        }
    }

    /// A list whose items take at least `item_bytes_min` bytes each: a count that cannot fit is refused before
    /// anything is allocated for it.
    pub fn list<T>(
        &mut self,
        item_bytes_min: usize,
        what: &'static str,
        mut each: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let count = self.u32(what)? as usize;
        if count > self.remaining() / item_bytes_min {
            return Err(DecodeError::Truncated {
                at: self.bytes.len(),
                what,
            });
        }
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(each(self)?);
        }
        Ok(items)
    }
}
