//! One HTTP/2 connection for gRPC calls (RFC 9113), unary or streamed, as lean as correctness allows: frames are
//! written into one buffer, sent by one `write` for many calls, and read in place.
//!
//! It does what a client must: settings and their acknowledgement, pings, flow control in both directions,
//! continuations, padding, resets and GOAWAY. Its own windows are as large as the protocol allows, so that the
//! server never waits for it. The socket does not block; the caller polls.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustc_hash::FxHashMap;

use super::hpack::{Decoder, Encoder};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Largest window (RFC 9113 §6.9.1).
const WINDOW_MAX: u32 = (1 << 31) - 1;
const WINDOW_DEFAULT: u32 = 65_535;
const FRAME_HEAD: usize = 9;
/// We announce no larger frames than every endpoint must take.
const FRAME_BYTES_MAX: usize = 16_384;
const READ_BYTES: usize = 256 * 1024;
/// Largest answer to one call.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 0x1;
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// Who is told of answers.
pub trait Handler<C> {
    /// The answer's message; of a streamed call, one of them.
    fn message(&mut self, call: &mut C, message: &[u8]);
    /// The call is over; without an error, `message` was called before: once, if the call is unary.
    fn end(&mut self, call: C, outcome: Result<(), String>);
}

struct Stream<C> {
    call: C,
    /// Whether more messages of ours may follow, and more than one answer.
    streamed: bool,
    /// Bytes that came since the server was told that there is room again.
    received: u32,
    /// What of the message did not fit the windows yet.
    unsent: VecDeque<u8>,
    window: i64,
    /// The beginning of a message whose end has not come.
    partial: Vec<u8>,
    answered: bool,
    status: Option<Vec<u8>>,
    message: Vec<u8>,
    http_status: bool,
}

/// A connection with the calls that are under way on it.
pub struct Connection<C> {
    socket: TcpStream,
    encoder: Encoder,
    decoder: Decoder,
    streams: FxHashMap<u32, Stream<C>>,
    next_stream: u32,
    out: Vec<u8>,
    sent: usize,
    input: Vec<u8>,
    /// The part of `input` that was read and not yet handled.
    start: usize,
    end: usize,
    window: i64,
    stream_window: i64,
    frame_bytes_max: usize,
    /// Streams that wait for a window.
    blocked: Vec<u32>,
    received: u32,
    /// A header block whose continuation has not come: its stream and flags.
    headers: Option<(u32, u8, Vec<u8>)>,
    going_away: bool,
}

fn broken(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().expect("four bytes"))
}

fn frame(out: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: u32) {
    let head = (length as u64) << 40 | u64::from(kind) << 32 | u64::from(flags) << 24;
    out.extend_from_slice(&head.to_be_bytes()[..5]);
    out.extend_from_slice(&stream.to_be_bytes());
}

impl<C> Connection<C> {
    /// Connects and exchanges settings; all calls carry the token, if there is one.
    pub fn open(
        address: SocketAddr,
        authority: &str,
        token: Option<&str>,
        paths: &[&str],
    ) -> io::Result<Self> {
        let socket = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(CONNECT_TIMEOUT))?;
        socket.set_write_timeout(Some(CONNECT_TIMEOUT))?;
        let mut connection = Connection {
            socket,
            encoder: Encoder::new(authority, token, paths, 4096),
            decoder: Decoder::new(),
            streams: FxHashMap::default(),
            next_stream: 1,
            out: Vec::with_capacity(READ_BYTES),
            sent: 0,
            input: vec![0; READ_BYTES],
            start: 0,
            end: 0,
            window: WINDOW_DEFAULT.into(),
            stream_window: WINDOW_DEFAULT.into(),
            frame_bytes_max: FRAME_BYTES_MAX,
            blocked: Vec::new(),
            received: 0,
            headers: None,
            going_away: false,
        };
        let out = &mut connection.out;
        out.extend_from_slice(PREFACE);
        // No push, and streams that the server may fill without waiting.
        frame(out, 12, SETTINGS, 0, 0);
        out.extend_from_slice(&[0, 2, 0, 0, 0, 0, 0, 4]);
        out.extend_from_slice(&WINDOW_MAX.to_be_bytes());
        frame(out, 4, WINDOW_UPDATE, 0, 0);
        out.extend_from_slice(&(WINDOW_MAX - WINDOW_DEFAULT).to_be_bytes());
        connection.flush()?;
        connection.await_settings(authority, token, paths)?;
        connection.socket.set_nonblocking(true)?;
        Ok(connection)
    }

    /// The server's first frame says how large its table is, before the first header block goes out.
    fn await_settings(&mut self, authority: &str, token: Option<&str>, paths: &[&str]) -> io::Result<()> {
        loop {
            let input = &self.input[..self.end];
            if input.len() >= FRAME_HEAD {
                let length = (word(input) >> 8) as usize;
                if input[3] != SETTINGS || input[4] & ACK != 0 || length > FRAME_BYTES_MAX {
                    return Err(broken("the server does not speak HTTP/2"));
                }
                if input.len() >= FRAME_HEAD + length {
                    let settings = input[FRAME_HEAD..FRAME_HEAD + length].chunks_exact(6);
                    let table = settings
                        .filter(|setting| setting[..2] == [0, 1])
                        .map(|s| word(&s[2..]))
                        .next_back();
                    self.encoder = Encoder::new(authority, token, paths, table.unwrap_or(4096) as usize);
                    return Ok(());
                }
            }
            let read = self.socket.read(&mut self.input[self.end..])?;
            if read == 0 {
                return Err(broken("the server closed the connection"));
            }
            self.end += read;
        }
    }

    /// Calls that are under way.
    pub fn in_flight(&self) -> usize {
        self.streams.len()
    }

    /// Whether no new call may be made.
    pub fn is_going_away(&self) -> bool {
        self.going_away || self.next_stream > WINDOW_MAX - 2
    }

    /// Whether something waits for the socket.
    pub fn wants_write(&self) -> bool {
        self.sent < self.out.len()
    }

    /// For polling.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Starts a unary call of `path` with a message of `length` bytes, which `write` appends.
    pub fn call(&mut self, path: usize, call: C, length: usize, write: impl FnOnce(&mut Vec<u8>)) {
        let id = self.start(path, call, false);
        self.message(id, length, write);
    }

    /// Starts a streamed call of `path`; its messages follow by [`send`](Connection::send).
    pub fn open_stream(&mut self, path: usize, call: C) -> u32 {
        self.start(path, call, true)
    }

    /// Sends one more message of a streamed call; one that is over takes no more.
    pub fn send(&mut self, id: u32, length: usize, write: impl FnOnce(&mut Vec<u8>)) {
        if self.streams.contains_key(&id) {
            self.message(id, length, write);
        }
    }

    fn start(&mut self, path: usize, call: C, streamed: bool) -> u32 {
        let id = self.next_stream;
        self.next_stream += 2;
        let out = &mut self.out;
        let at = out.len();
        frame(out, 0, HEADERS, END_HEADERS, id);
        self.encoder.request(path, out);
        let block = (out.len() - at - FRAME_HEAD) as u32;
        out[at..at + 3].copy_from_slice(&block.to_be_bytes()[1..]);
        let stream = Stream {
            call,
            streamed,
            received: 0,
            unsent: VecDeque::new(),
            window: self.stream_window,
            partial: Vec::new(),
            answered: false,
            status: None,
            message: Vec::new(),
            http_status: false,
        };
        self.streams.insert(id, stream);
        id
    }

    fn message(&mut self, id: u32, length: usize, write: impl FnOnce(&mut Vec<u8>)) {
        let stream = self.streams.get_mut(&id).expect("the callers looked");
        let out = &mut self.out;
        let body = length + 5;
        let fits = stream.unsent.is_empty()
            && body as i64 <= self.window.min(stream.window)
            && body <= self.frame_bytes_max;
        if fits {
            frame(out, body, DATA, if stream.streamed { 0 } else { END_STREAM }, id);
        }
        let at = out.len();
        out.push(0);
        out.extend_from_slice(&(length as u32).to_be_bytes());
        write(out);
        assert_eq!(out.len() - at, body, "a message is as long as announced");
        if fits {
            self.window -= body as i64;
            stream.window -= body as i64;
            return;
        }
        if stream.unsent.is_empty() {
            self.blocked.push(id);
        }
        stream.unsent.extend(out.drain(at..));
        self.send_blocked();
    }

    fn send_blocked(&mut self) {
        self.blocked.retain(|id| {
            let Some(stream) = self.streams.get_mut(id) else {
                return false;
            };
            while !stream.unsent.is_empty() {
                let room = self.window.min(stream.window).max(0) as usize;
                let length = room.min(self.frame_bytes_max).min(stream.unsent.len());
                if length == 0 {
                    return true;
                }
                let last = length == stream.unsent.len() && !stream.streamed;
                frame(
                    &mut self.out,
                    length,
                    DATA,
                    if last { END_STREAM } else { 0 },
                    *id,
                );
                self.out.extend(stream.unsent.drain(..length));
                self.window -= length as i64;
                stream.window -= length as i64;
            }
            false
        });
    }

    /// Sends what the socket takes.
    pub fn flush(&mut self) -> io::Result<()> {
        while self.sent < self.out.len() {
            match self.socket.write(&self.out[self.sent..]) {
                Ok(0) => return Err(broken("the connection takes no more")),
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(())
    }

    /// Reads once, and handles every whole frame.
    pub fn receive(&mut self, handler: &mut impl Handler<C>) -> io::Result<()> {
        if self.start > 0 {
            self.input.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        match self.socket.read(&mut self.input[self.end..]) {
            Ok(0) => return Err(broken("the server closed the connection")),
            Ok(read) => self.end += read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        let input = std::mem::take(&mut self.input);
        let outcome = self.frames(&input, handler);
        self.input = input;
        outcome
    }

    fn frames(&mut self, input: &[u8], handler: &mut impl Handler<C>) -> io::Result<()> {
        while self.end - self.start >= FRAME_HEAD {
            let head = &input[self.start..self.start + FRAME_HEAD];
            let length = (word(head) >> 8) as usize;
            if length > FRAME_BYTES_MAX {
                return Err(broken("a frame is longer than agreed"));
            }
            let (kind, flags, stream) = (head[3], head[4], word(&head[5..]) & WINDOW_MAX);
            let body = self.start + FRAME_HEAD;
            if self.end < body + length {
                break;
            }
            self.start = body + length;
            let payload = &input[body..body + length];
            match kind {
                DATA => self.on_data(stream, flags, payload, handler)?,
                HEADERS => self.on_headers(stream, flags, payload, handler)?,
                CONTINUATION => self.on_continuation(stream, flags, payload, handler)?,
                SETTINGS => self.on_settings(flags, payload)?,
                PING if flags & ACK == 0 && length == 8 => {
                    frame(&mut self.out, 8, PING, ACK, 0);
                    self.out.extend_from_slice(payload);
                }
                WINDOW_UPDATE if length == 4 => self.on_window(stream, word(payload)),
                RST_STREAM if length == 4 => {
                    if let Some(ended) = self.streams.remove(&stream) {
                        handler.end(ended.call, Err(format!("stream reset, code {}", word(payload))));
                    }
                }
                GOAWAY => self.on_goaway(payload, handler),
                // Frames of other kinds are to be ignored.
                _ => {}
            }
        }
        Ok(())
    }

    fn on_data(
        &mut self,
        id: u32,
        flags: u8,
        payload: &[u8],
        handler: &mut impl Handler<C>,
    ) -> io::Result<()> {
        self.received += payload.len() as u32;
        if self.received >= WINDOW_MAX / 2 {
            frame(&mut self.out, 4, WINDOW_UPDATE, 0, 0);
            self.out.extend_from_slice(&self.received.to_be_bytes());
            self.received = 0;
        }
        let data = unpadded(payload, flags, 0)?;
        let Some(stream) = self.streams.get_mut(&id) else {
            return Ok(());
        };
        stream.received += payload.len() as u32;
        if stream.streamed && stream.received >= WINDOW_MAX / 2 {
            frame(&mut self.out, 4, WINDOW_UPDATE, 0, id);
            self.out.extend_from_slice(&stream.received.to_be_bytes());
            stream.received = 0;
        }
        let joined;
        let mut rest = data;
        if !stream.partial.is_empty() {
            stream.partial.extend_from_slice(data);
            joined = std::mem::take(&mut stream.partial);
            rest = &joined;
        }
        while let Some((message, after)) = split_message(rest) {
            if stream.streamed || !stream.answered {
                stream.answered = true;
                handler.message(&mut stream.call, message);
            }
            rest = after;
        }
        if rest.len() > MESSAGE_BYTES_MAX {
            return Err(broken("an answer is too long"));
        }
        stream.partial.extend_from_slice(rest);
        if flags & END_STREAM != 0 {
            self.finish(id, handler);
        }
        Ok(())
    }

    fn on_headers(
        &mut self,
        id: u32,
        flags: u8,
        payload: &[u8],
        handler: &mut impl Handler<C>,
    ) -> io::Result<()> {
        let block = unpadded(payload, flags, if flags & PRIORITY != 0 { 5 } else { 0 })?;
        if flags & END_HEADERS == 0 {
            self.headers = Some((id, flags, block.to_vec()));
            return Ok(());
        }
        self.on_block(id, flags, block, handler)
    }

    fn on_continuation(
        &mut self,
        id: u32,
        flags: u8,
        payload: &[u8],
        handler: &mut impl Handler<C>,
    ) -> io::Result<()> {
        let (stream, first_flags, mut block) = self
            .headers
            .take()
            .ok_or_else(|| broken("a stray continuation"))?;
        if stream != id || block.len() > READ_BYTES {
            return Err(broken("a malformed continuation"));
        }
        block.extend_from_slice(payload);
        if flags & END_HEADERS == 0 {
            self.headers = Some((id, first_flags, block));
            return Ok(());
        }
        self.on_block(id, first_flags, &block, handler)
    }

    fn on_block(
        &mut self,
        id: u32,
        flags: u8,
        block: &[u8],
        handler: &mut impl Handler<C>,
    ) -> io::Result<()> {
        let mut stream = self.streams.get_mut(&id);
        let decoded = self.decoder.decode(block, |name, value| {
            let Some(stream) = &mut stream else { return };
            match name {
                b":status" => stream.http_status = value == b"200",
                b"grpc-status" => stream.status = Some(value.to_vec()),
                b"grpc-message" => stream.message = value.to_vec(),
                _ => {}
            }
        });
        decoded.map_err(|_| broken("a header block cannot be decoded"))?;
        if flags & END_STREAM != 0 {
            self.finish(id, handler);
        }
        Ok(())
    }

    /// The server's side of a stream is over.
    fn finish(&mut self, id: u32, handler: &mut impl Handler<C>) {
        let Some(stream) = self.streams.remove(&id) else {
            return;
        };
        let outcome = match stream.status.as_deref() {
            Some(b"0") if stream.answered => Ok(()),
            Some(b"0") => Err("no message in the answer".to_owned()),
            Some(status) => {
                let status = String::from_utf8_lossy(status);
                Err(format!(
                    "grpc-status {status}: {}",
                    percent_decoded(&stream.message)
                ))
            }
            None if !stream.http_status => Err("an HTTP error instead of a gRPC answer".to_owned()),
            None => Err("the stream ended without a status".to_owned()),
        };
        handler.end(stream.call, outcome);
    }

    fn on_settings(&mut self, flags: u8, payload: &[u8]) -> io::Result<()> {
        if flags & ACK != 0 {
            return Ok(());
        }
        for setting in payload.chunks_exact(6) {
            let value = word(&setting[2..]);
            match setting[1] {
                4 if setting[0] == 0 => {
                    let change = i64::from(value) - self.stream_window;
                    self.stream_window = value.into();
                    self.streams
                        .values_mut()
                        .for_each(|stream| stream.window += change);
                }
                5 if setting[0] == 0 => {
                    if !(FRAME_BYTES_MAX..1 << 24).contains(&(value as usize)) {
                        return Err(broken("a frame size is out of bounds"));
                    }
                    self.frame_bytes_max = value as usize;
                }
                _ => {}
            }
        }
        frame(&mut self.out, 0, SETTINGS, ACK, 0);
        self.send_blocked();
        Ok(())
    }

    fn on_window(&mut self, stream: u32, more: u32) {
        match stream {
            0 => self.window += i64::from(more & WINDOW_MAX),
            id => {
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.window += i64::from(more & WINDOW_MAX);
                }
            }
        }
        if !self.blocked.is_empty() {
            self.send_blocked();
        }
    }

    /// Calls that the server has not seen are over; the others may still be answered.
    fn on_goaway(&mut self, payload: &[u8], handler: &mut impl Handler<C>) {
        self.going_away = true;
        let last = if payload.len() >= 4 {
            word(payload) & WINDOW_MAX
        } else {
            0
        };
        let unseen: Vec<u32> = self.streams.keys().copied().filter(|id| *id > last).collect();
        for id in unseen {
            if let Some(stream) = self.streams.remove(&id) {
                handler.end(stream.call, Err("the server goes away".to_owned()));
            }
        }
    }

    /// Gives all calls back, with the reason why the connection is lost.
    pub fn abandon(self, reason: &str, handler: &mut impl Handler<C>) {
        for stream in self.streams.into_values() {
            handler.end(stream.call, Err(reason.to_owned()));
        }
    }
}

/// The text of `grpc-message`, in which all but plain ASCII is percent-encoded.
fn percent_decoded(text: &[u8]) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits
            .filter(|_| first == b'%')
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        decoded.push(byte.unwrap_or(first));
        rest = if byte.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// The gRPC message at the beginning, if all of it is there, and what follows it.
fn split_message(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = word(data.get(1..5)?) as usize;
    data[5..].split_at_checked(length)
}

/// A frame's content without padding and without `skip` bytes of priority.
fn unpadded(payload: &[u8], flags: u8, skip: usize) -> io::Result<&[u8]> {
    let malformed = || broken("a frame's padding is longer than the frame");
    if flags & PADDED == 0 {
        return payload.get(skip..).ok_or_else(malformed);
    }
    let padding = usize::from(*payload.first().ok_or_else(malformed)?);
    let end = payload.len().checked_sub(padding).ok_or_else(malformed)?;
    payload.get(1 + skip..end).ok_or_else(malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_decoded() {
        assert_eq!(percent_decoded(b"request%20timed out%2C%"), "request timed out,%");
        assert_eq!(percent_decoded(b"100%zz"), "100%zz");
    }

    #[test]
    fn frames_without_padding_and_priority() {
        assert_eq!(unpadded(b"abc", 0, 0).ok(), Some(&b"abc"[..]));
        assert_eq!(unpadded(b"\x02abcxx", PADDED, 0).ok(), Some(&b"abc"[..]));
        assert_eq!(
            unpadded(b"\x01pppppabx", PADDED | PRIORITY, 5).ok(),
            Some(&b"ab"[..])
        );
        assert!(unpadded(b"\x09abc", PADDED, 0).is_err());
        assert!(unpadded(b"", PADDED, 0).is_err());
        assert!(unpadded(b"abc", PRIORITY, 5).is_err());
    }

    #[test]
    fn messages_are_recognised_when_whole() {
        let (one, rest) = split_message(&[0, 0, 0, 0, 2, 7, 8, 0, 0]).expect("one is whole");
        assert_eq!((one, rest), (&[7, 8][..], &[0, 0][..]));
        assert_eq!(split_message(&[0, 0, 0, 0, 0]), Some((&[][..], &[][..])));
        assert_eq!(split_message(&[0, 0, 0, 0, 2, 1]), None);
        assert_eq!(split_message(&[0, 0, 0]), None);
    }
}
