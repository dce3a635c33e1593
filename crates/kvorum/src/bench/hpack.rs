//! Header compression (RFC 7541), as much of it as a gRPC client of one service needs.
//!
//! The encoder knows its few fields beforehand and sends each as a one-byte index after the first time. The
//! decoder is complete but for the names of the static table that no gRPC server uses to say anything.

use std::collections::VecDeque;

/// The size that both sides' tables have until told otherwise (RFC 7540 §6.5.2).
const TABLE_BYTES: usize = 4096;
/// What an entry costs beside its strings (RFC 7541 §4.1).
const ENTRY_OVERHEAD: usize = 32;
/// Longest string that is decoded.
const STRING_BYTES_MAX: usize = 64 * 1024;
/// Entries of the static table.
const STATIC_ENTRIES: usize = 61;

/// Lengths in bits of the Huffman codes of the 256 octets (RFC 7541 appendix B). The code is canonical: these
/// determine it. The 257th, end of string, is 30 ones.
#[rustfmt::skip]
const CODE_LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

/// A header block that cannot be decoded: the connection is lost, because the tables differ from now on.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

/// Decodes Huffman-coded strings by the canonical code's first code of each length.
struct Huffman {
    /// Octets in the order of their codes.
    symbols: Vec<u8>,
    /// For each length: the first code, how many there are, and where their symbols start.
    lengths: [(u32, u32, usize); 31],
}

impl Huffman {
    fn new() -> Self {
        let mut symbols: Vec<u8> = (0..=255).collect();
        symbols.sort_by_key(|symbol| CODE_LENGTHS[usize::from(*symbol)]);
        let mut lengths = [(0, 0, 0); 31];
        let (mut code, mut start) = (0u32, 0usize);
        for (length, slot) in lengths.iter_mut().enumerate().skip(1) {
            code <<= 1;
            let count = CODE_LENGTHS.iter().filter(|l| usize::from(**l) == length).count();
            *slot = (code, count as u32, start);
            code += count as u32;
            start += count;
        }
        Huffman { symbols, lengths }
    }

    fn decode(&self, coded: &[u8], text: &mut Vec<u8>) -> Result<(), Malformed> {
        let (mut code, mut length) = (0u32, 0usize);
        for bit in coded
            .iter()
            .flat_map(|byte| (0..8).rev().map(move |shift| byte >> shift & 1))
        {
            code = code << 1 | u32::from(bit);
            length += 1;
            let (first, count, start) = *self.lengths.get(length).ok_or(Malformed)?;
            if code >= first && code - first < count {
                text.push(self.symbols[start + (code - first) as usize]);
                (code, length) = (0, 0);
            }
        }
        // What remains is padding: fewer than eight ones.
        if length < 8 && code == (1 << length) - 1 {
            Ok(())
        } else {
            Err(Malformed)
        }
    }
}

/// The receiving side's state.
pub struct Decoder {
    huffman: Huffman,
    /// Newest first.
    table: VecDeque<(Vec<u8>, Vec<u8>)>,
    bytes: usize,
    bytes_max: usize,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Decoder {
    pub fn new() -> Self {
        Decoder {
            huffman: Huffman::new(),
            table: VecDeque::new(),
            bytes: 0,
            bytes_max: TABLE_BYTES,
            name: Vec::new(),
            value: Vec::new(),
        }
    }

    /// Gives every field of a block to `field`.
    pub fn decode(&mut self, mut block: &[u8], mut field: impl FnMut(&[u8], &[u8])) -> Result<(), Malformed> {
        while let Some(&first) = block.first() {
            if first & 0x80 != 0 {
                let index = integer(&mut block, 7)?;
                let (name, value) = self.entry(index)?;
                field(name, value);
            } else if first & 0xe0 == 0x20 {
                let size = integer(&mut block, 5)?;
                if size > TABLE_BYTES {
                    return Err(Malformed);
                }
                self.bytes_max = size;
                self.evict();
            } else {
                let indexed = first & 0x40 != 0;
                let index = integer(&mut block, if indexed { 6 } else { 4 })?;
                let (mut name, mut value) = (std::mem::take(&mut self.name), std::mem::take(&mut self.value));
                name.clear();
                value.clear();
                match index {
                    0 => self.string(&mut block, &mut name)?,
                    index => name.extend_from_slice(self.entry(index)?.0),
                }
                self.string(&mut block, &mut value)?;
                field(&name, &value);
                if indexed {
                    self.bytes += name.len() + value.len() + ENTRY_OVERHEAD;
                    self.table.push_front((name.clone(), value.clone()));
                    self.evict();
                }
                (self.name, self.value) = (name, value);
            }
        }
        Ok(())
    }

    fn entry(&self, index: usize) -> Result<(&[u8], &[u8]), Malformed> {
        const STATUSES: [&str; 7] = ["200", "204", "206", "304", "400", "404", "500"];
        match index {
            0 => Err(Malformed),
            8..=14 => Ok((b":status", STATUSES[index - 8].as_bytes())),
            1..=STATIC_ENTRIES => Ok((b"", b"")),
            _ => {
                let (name, value) = self.table.get(index - STATIC_ENTRIES - 1).ok_or(Malformed)?;
                Ok((name, value))
            }
        }
    }

    fn evict(&mut self) {
        while self.bytes > self.bytes_max {
            let (name, value) = self.table.pop_back().expect("an empty table has no bytes");
            self.bytes -= name.len() + value.len() + ENTRY_OVERHEAD;
        }
    }

    fn string(&self, block: &mut &[u8], text: &mut Vec<u8>) -> Result<(), Malformed> {
        let coded = *block.first().ok_or(Malformed)? & 0x80 != 0;
        let length = integer(block, 7)?;
        if length > STRING_BYTES_MAX {
            return Err(Malformed);
        }
        let (string, rest) = block.split_at_checked(length).ok_or(Malformed)?;
        *block = rest;
        match coded {
            true => self.huffman.decode(string, text),
            false => {
                text.extend_from_slice(string);
                Ok(())
            }
        }
    }
}

/// An integer with a prefix of so many bits (RFC 7541 §5.1), removed from the block.
fn integer(block: &mut &[u8], prefix: u32) -> Result<usize, Malformed> {
    let (&first, mut rest) = block.split_first().ok_or(Malformed)?;
    let mask = (1usize << prefix) - 1;
    let mut value = usize::from(first) & mask;
    if value == mask {
        for shift in (0..28).step_by(7) {
            let (&byte, tail) = rest.split_first().ok_or(Malformed)?;
            rest = tail;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                *block = rest;
                return Ok(value);
            }
        }
        return Err(Malformed);
    }
    *block = rest;
    Ok(value)
}

/// What a field's first transmission says of its name.
enum Name {
    /// The static table's entry with this name.
    Static(u8),
    New(&'static str),
}

/// The sending side's state: which of our fields are in the table, by order of insertion.
pub struct Encoder {
    fields: Vec<(Name, String)>,
    /// The first that holds a path; those before it come in every request.
    first_path: usize,
    inserted: Vec<usize>,
    indexing: bool,
    /// A size update that stands at the head of the first block.
    update: Option<usize>,
}

impl Encoder {
    /// For requests to these paths of `authority`, with a caller's token if there is one, towards a server whose table
    /// has `table_bytes` at most.
    pub fn new(authority: &str, token: Option<&str>, paths: &[&str], table_bytes: usize) -> Self {
        let mut fields = vec![
            (Name::Static(1), authority.to_owned()),
            (Name::New("te"), "trailers".to_owned()),
            (Name::Static(31), "application/grpc".to_owned()),
            (Name::Static(58), "kvorum-bench".to_owned()),
        ];
        fields.extend(token.map(|token| (Name::New("token"), token.to_owned())));
        let first_path = fields.len();
        fields.extend(paths.iter().map(|path| (Name::Static(4), (*path).to_owned())));
        let needed: usize = fields
            .iter()
            .map(|(_, value)| value.len() + 16 + ENTRY_OVERHEAD)
            .sum();
        let table_bytes = table_bytes.min(TABLE_BYTES);
        Encoder {
            indexing: needed <= table_bytes,
            update: (table_bytes < TABLE_BYTES).then_some(table_bytes),
            fields,
            first_path,
            inserted: Vec::new(),
        }
    }

    /// Appends the header block of a request to the path of this number.
    pub fn request(&mut self, path: usize, out: &mut Vec<u8>) {
        if let Some(size) = self.update.take() {
            push_integer(out, 0x20, 5, size);
        }
        // `:method: POST`, `:scheme: http`; pseudo fields come first.
        out.extend_from_slice(&[0x83, 0x86]);
        self.field(self.first_path + path, out);
        for field in 0..self.first_path {
            self.field(field, out);
        }
    }

    fn field(&mut self, field: usize, out: &mut Vec<u8>) {
        if let Some(position) = self.inserted.iter().position(|known| *known == field) {
            let age = self.inserted.len() - 1 - position;
            return push_integer(out, 0x80, 7, STATIC_ENTRIES + 1 + age);
        }
        let (pattern, prefix) = if self.indexing { (0x40, 6) } else { (0x00, 4) };
        let (name, value) = &self.fields[field];
        match name {
            Name::Static(index) => push_integer(out, pattern, prefix, usize::from(*index)),
            Name::New(name) => {
                out.push(pattern);
                push_integer(out, 0, 7, name.len());
                out.extend_from_slice(name.as_bytes());
            }
        }
        push_integer(out, 0, 7, value.len());
        out.extend_from_slice(value.as_bytes());
        if self.indexing {
            self.inserted.push(field);
        }
    }
}

fn push_integer(out: &mut Vec<u8>, pattern: u8, prefix: u32, value: usize) {
    let mask = (1usize << prefix) - 1;
    if value < mask {
        return out.push(pattern | value as u8);
    }
    out.push(pattern | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect()
    }

    fn fields(decoder: &mut Decoder, block: &[u8]) -> Vec<(String, String)> {
        let mut all = Vec::new();
        let text = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
        decoder
            .decode(block, |name, value| all.push((text(name), text(value))))
            .unwrap();
        all
    }

    #[test]
    fn huffman_strings_of_the_rfc() {
        let check = |hex: &str, expected: &str| {
            let mut text = Vec::new();
            Huffman::new().decode(&bytes(hex), &mut text).unwrap();
            assert_eq!(String::from_utf8(text).unwrap(), expected);
        };
        check("f1e3c2e5f23a6ba0ab90f4ff", "www.example.com");
        check("a8eb10649cbf", "no-cache");
        check("6402", "302");
        check(
            "d07abe941054d444a8200595040b8166e082a62d1bff",
            "Mon, 21 Oct 2013 20:13:21 GMT",
        );
        assert_eq!(
            Huffman::new().decode(&bytes("ffffffff"), &mut Vec::new()),
            Err(Malformed)
        );
        assert_eq!(
            Huffman::new().decode(&bytes("00ffff"), &mut Vec::new()),
            Err(Malformed)
        );
    }

    /// RFC 7541 appendix C.6, responses with Huffman coding; our part of the static table leaves names empty.
    #[test]
    fn blocks_share_a_table() {
        let mut decoder = Decoder::new();
        let first = bytes(
            "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3",
        );
        let decoded = fields(&mut decoder, &first);
        assert_eq!(decoded[0], (":status".into(), "302".into()));
        assert_eq!(decoded[1].1, "private");
        assert_eq!(decoded[3].1, "https://www.example.com");
        let second = fields(&mut decoder, &bytes("4883640effc1c0bf"));
        assert_eq!(second[0], (":status".into(), "307".into()));
        assert_eq!(second[1].1, "private");
        assert_eq!(second[3].1, "https://www.example.com");
        assert_eq!(decoder.decode(&[0xff, 0x70], |_, _| {}), Err(Malformed));
        assert_eq!(
            decoder.decode(&[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff], |_, _| {}),
            Err(Malformed)
        );
    }

    #[test]
    fn requests_become_indexes() {
        let mut encoder = Encoder::new("127.0.0.1:2379", None, &["/a/Put", "/a/Range"], 4096);
        let mut decoder = Decoder::new();
        let mut request = |path: usize| {
            let mut block = Vec::new();
            encoder.request(path, &mut block);
            let values: Vec<String> = fields(&mut decoder, &block)
                .into_iter()
                .map(|(_, value)| value)
                .skip(2)
                .collect();
            (block.len(), values)
        };
        let expected = |path: &'static str| {
            vec![
                path,
                "127.0.0.1:2379",
                "trailers",
                "application/grpc",
                "kvorum-bench",
            ]
        };
        assert_eq!(request(0).1, expected("/a/Put"));
        assert_eq!(
            request(0),
            (7, expected("/a/Put").iter().map(ToString::to_string).collect())
        );
        assert_eq!(request(1).1, expected("/a/Range"));
        assert_eq!(request(1).0, 7);
        assert_eq!(request(0).0, 7);
    }

    #[test]
    fn a_server_without_a_table_gets_literals() {
        let mut encoder = Encoder::new("h:1", None, &["/a/Put"], 0);
        let (mut first, mut second) = (Vec::new(), Vec::new());
        encoder.request(0, &mut first);
        encoder.request(0, &mut second);
        assert_eq!(first[0], 0x20);
        assert_eq!(first[1..], second);
        assert_eq!(fields(&mut Decoder::new(), &first).len(), 7);
    }

    #[test]
    fn a_token_comes_with_every_request() {
        let mut encoder = Encoder::new("h:1", Some("abc.7"), &["/a/Put", "/a/Range"], 4096);
        let mut decoder = Decoder::new();
        for path in [0, 1, 0] {
            let mut block = Vec::new();
            encoder.request(path, &mut block);
            let found = fields(&mut decoder, &block);
            assert_eq!(found.last(), Some(&("token".to_owned(), "abc.7".to_owned())));
            assert_eq!(found[2].1, ["/a/Put", "/a/Range"][path]);
        }
    }
}
