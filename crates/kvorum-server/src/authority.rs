//! A word that etcd's older clients put where a host belongs.
//!
//! `etcdctl` 3.4 (grpc-go 1.26 and its neighbours) asks `endpoint status`, `hashkv`, `defrag` and `move-leader` of an
//! endpoint that is written `http://host:port` with just that as the request's `:authority`. It is none; etcd's server
//! never looks, hyper's refuses the stream as malformed before any handler sees it. So the beginning of an HTTP/2
//! connection passes through here: in its first HEADERS frame an authority that begins with `http://` begins with
//! `httpx--` instead, which is well-formed, and nobody's name.
//!
//! The three characters are of the same length as what they replace, in bytes and in bits of HPACK's code, so that
//! nothing else of the frame changes, and the dynamic tables of both sides keep the same sizes; later requests refer to
//! the entry in them. Whatever else is wrong with a connection is left for hyper to find. At most one frame is held
//! back, and only until it is whole.

/// A frame's head: length (3 bytes), type, flags, stream (4 bytes). RFC 9113, 4.1.
const HEAD_BYTES: usize = 9;
/// Longest frame that a server takes if it did not say otherwise; a longer one ends the connection.
const FRAME_BYTES_MAX: usize = 16_384;
const HEADERS: u8 = 1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// `:authority` in HPACK's static table. RFC 7541, appendix A.
const AUTHORITY: usize = 1;

/// "http://" and what replaces it.
const PLAIN: (&[u8; 7], &[u8; 7]) = (b"http://", b"httpx--");
/// The same in HPACK's code (RFC 7541, appendix B): the first 41 of 48 bits.
const CODED: (u64, u64) = (0x9d29_aee3_0c00, 0x9d29_afca_cb00);
const CODED_BYTES: usize = 6;
const CODED_MASK: u64 = 0xffff_ffff_ff80;

/// The beginning of a connection, behind the preface.
#[derive(Debug, Default)]
pub(crate) struct Mender {
    held: Vec<u8>,
    /// How much of it may be read, and how much was.
    clean: usize,
    taken: usize,
    /// The first HEADERS frame is through.
    has_passed: bool,
}

impl Mender {
    /// Takes in what came from the client.
    pub(crate) fn take_in(&mut self, bytes: &[u8]) {
        self.held.drain(..self.taken);
        self.clean -= self.taken;
        self.taken = 0;
        self.held.extend_from_slice(bytes);
        while !self.has_passed {
            let frame = &mut self.held[self.clean..];
            let Some(head) = frame.first_chunk::<HEAD_BYTES>() else {
                return;
            };
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            if length > FRAME_BYTES_MAX {
                break;
            }
            let is_headers = head[3] == HEADERS;
            let Some(frame) = frame.get_mut(..HEAD_BYTES + length) else {
                return;
            };
            if is_headers {
                // `None`: there is nothing to mend, or it is not well-formed.
                let _ = mend(frame);
                break;
            }
            self.clean += frame.len();
        }
        self.end();
    }

    /// The client says no more: whatever is held may be read.
    pub(crate) fn end(&mut self) {
        self.has_passed = true;
        self.clean = self.held.len();
    }

    /// What may be read now, at most so much.
    pub(crate) fn read(&mut self, bytes_max: usize) -> &[u8] {
        let from = self.taken;
        self.taken = self.clean.min(from.saturating_add(bytes_max));
        &self.held[from..self.taken]
    }

    /// All that comes from now on goes on as it is.
    pub(crate) fn is_done(&self) -> bool {
        self.has_passed && self.taken == self.held.len()
    }
}

/// Mends the authority of a HEADERS frame. `None` if there is none that would have to be mended.
fn mend(frame: &mut [u8]) -> Option<()> {
    let flags = frame[4];
    let mut at = HEAD_BYTES;
    at += usize::from(flags & PADDED != 0);
    at += if flags & PRIORITY != 0 { 5 } else { 0 };
    loop {
        // The representations of RFC 7541, 6.
        let (prefix_bits, is_literal) = match frame.get(at)? {
            0x80.. => (7, false),
            0x40..=0x7f => (6, true),
            0x20..=0x3f => (5, false),
            _ => (4, true),
        };
        let index = integer(frame, &mut at, prefix_bits)?;
        if !is_literal {
            continue;
        }
        if index == 0 {
            string(frame, &mut at)?;
        }
        let (is_coded, value) = string(frame, &mut at)?;
        if index == AUTHORITY {
            return mend_value(is_coded, value);
        }
    }
}

fn mend_value(is_coded: bool, value: &mut [u8]) -> Option<()> {
    if !is_coded {
        let start = value.first_chunk_mut::<7>()?;
        return (start == PLAIN.0).then(|| *start = *PLAIN.1);
    }
    let start = value.first_chunk_mut::<CODED_BYTES>()?;
    let mut word = [0; 8];
    word[2..].copy_from_slice(start);
    let bits = u64::from_be_bytes(word);
    (bits & CODED_MASK == CODED.0).then(|| {
        let mended = bits & !CODED_MASK | CODED.1;
        start.copy_from_slice(&mended.to_be_bytes()[2..]);
    })
}

/// An integer of RFC 7541, 5.1, which begins in the last bits of a byte.
fn integer(frame: &[u8], at: &mut usize, prefix_bits: u32) -> Option<usize> {
    let most = (1 << prefix_bits) - 1;
    let mut value = usize::from(*frame.get(*at)?) & most;
    *at += 1;
    if value < most {
        return Some(value);
    }
    // Nothing in a frame is longer than three bytes of seven bits tell.
    for shift in [0, 7, 14] {
        let byte = *frame.get(*at)?;
        *at += 1;
        value += usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// A string of RFC 7541, 5.2, and whether it is coded.
fn string<'a>(frame: &'a mut [u8], at: &mut usize) -> Option<(bool, &'a mut [u8])> {
    let is_coded = frame.get(*at)? & 0x80 != 0;
    let length = integer(frame, at, 7)?;
    let from = *at;
    *at += length;
    Some((is_coded, frame.get_mut(from..*at)?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let head = [length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        [&head[..], payload].concat()
    }

    /// What the server reads if the bytes come in pieces of so many.
    fn passed(bytes: &[u8], piece: usize) -> Vec<u8> {
        let mut mender = Mender::default();
        let mut read = Vec::new();
        for piece in bytes.chunks(piece) {
            mender.take_in(piece);
            loop {
                let some = mender.read(3);
                if some.is_empty() {
                    break;
                }
                read.extend_from_slice(some);
            }
        }
        mender.end();
        read.extend_from_slice(mender.read(usize::MAX));
        assert!(mender.is_done());
        read
    }

    /// The beginning of a connection whose first request has these fields, and the same of what is expected.
    fn check(flags: u8, before: &[u8], authority: &[u8], expected: &[u8]) {
        let connection = |authority: &[u8]| {
            let ahead: &[u8] = match flags {
                0x2c => &[2, 0, 0, 0, 0, 15],
                0x0c => &[2],
                0x24 => &[0, 0, 0, 0, 15],
                _ => &[],
            };
            let padding: &[u8] = if flags & PADDED != 0 { &[0, 0] } else { &[] };
            let headers = [ahead, before, authority, &[0x86], padding].concat();
            [
                frame(4, 0, &[0, 3, 0, 0, 0, 100]),
                frame(8, 0, &[0, 0, 255, 255]),
                frame(HEADERS, flags, &headers),
                // A second one is not looked at.
                frame(HEADERS, 4, b"\x41\x08http://b"),
            ]
            .concat()
        };
        let (from, to) = (connection(authority), connection(expected));
        for piece in [1, 2, 9, 10, 33, from.len()] {
            assert_eq!(passed(&from, piece), to, "pieces of {piece}");
        }
    }

    #[test]
    fn an_authority_with_a_scheme_is_mended() {
        // `:method: POST`, `:scheme: http`, `:path: /a` as grpc-go sends them.
        let before = b"\x83\x86\x44\x02/a";
        let plain = (b"\x41\x08http://a", b"\x41\x08httpx--a");
        // "http://127.0.0.1:2379", coded, in the dynamic table.
        let coded = (
            b"\x41\x8f\x9d\x29\xae\xe3\x0c\x04\x4e\xae\x05\xc0\xb8\x6e\x09\x97\x5f",
            b"\x41\x8f\x9d\x29\xaf\xca\xcb\x04\x4e\xae\x05\xc0\xb8\x6e\x09\x97\x5f",
        );
        for flags in [0x04, 0x0c, 0x24, 0x2c] {
            check(flags, before, plain.0, plain.1);
            check(flags, before, coded.0, coded.1);
        }
        check(0x04, b"", b"\x01\x08http://a", b"\x01\x08httpx--a");
        // Behind a size of the table, a field with a name of its own, and one with a long index.
        check(0x04, b"\x3f\x01\x40\x01k\x01v\x7f\x00\x01v", plain.0, plain.1);
    }

    #[test]
    fn anything_else_is_left_as_it_is() {
        for same in [
            &b"\x41\x06a:2379"[..],
            b"\x41\x06http:/",
            b"\x41\x08https://",
            // Of another field.
            b"\x44\x08http://a",
            // Not well-formed: cut, and endless.
            b"\x41\x7fhttp://a",
            b"\x41\xff\xff\xff\xff\xff\xff\xff",
            b"",
        ] {
            check(0x04, b"", same, same);
        }
        let endless = [&[0xff, 0xff, 0xff, HEADERS, 4, 0, 0, 0, 1][..], &[0x41; 64]].concat();
        for piece in [1, 5, 73] {
            assert_eq!(passed(&endless, piece), endless);
        }
    }
}
