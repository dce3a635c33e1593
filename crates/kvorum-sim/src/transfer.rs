//! Snapshots on their way from member to member: the state machine's own frames, cut into pieces, each answered
//! before the next is sent. Whatever breaks the connection ends the transfer; the core then begins another.

use bytes::{Bytes, BytesMut};
use kvorum_mvcc::{MemView, SimStore, SnapshotReader, SnapshotSink};
use kvorum_node::{Input, PeerBody, PeerMessage};
use kvorum_raft::{LogId, MemberId, Message};

use crate::env::{Env, Event, ProcessEvent};
use crate::marks::Mark;
use crate::network::Frame;
use crate::process::Process;

/// Largest piece: small, so that even small states take several.
const PIECE_BYTES: usize = 4096;

/// One transfer to a peer.
#[derive(Debug)]
pub(crate) struct Outgoing {
    peer: MemberId,
    stream: u64,
    reader: SnapshotReader<MemView>,
    message: Bytes,
    /// The piece that is under way, and what is left of its frame.
    number: u64,
    rest: Bytes,
    ending: bool,
}

/// The transfer from a peer.
#[derive(Debug)]
pub(crate) struct Incoming {
    from: MemberId,
    stream: u64,
    next: u64,
    frame: BytesMut,
    sink: SnapshotSink<SimStore>,
}

impl Process {
    /// Begins to stream the view that was opened for this message's receiver.
    pub(crate) fn send_snapshot(&mut self, env: &mut Env, message: Message) {
        let peer = message.to;
        let Some(reader) = self.views.remove(&peer) else {
            return self.push(env, Input::SnapshotSent { peer, ok: false });
        };
        self.outgoing.retain(|other| other.peer != peer);
        let message = PeerMessage {
            from: self.id,
            to: peer,
            body: PeerBody::Raft(message),
        }
        .encode();
        let stream = env.random.next();
        let (number, rest, ending) = (0, Bytes::new(), false);
        self.outgoing.push(Outgoing {
            peer,
            stream,
            reader,
            message,
            number,
            rest,
            ending,
        });
        self.send_piece(env, stream);
    }

    fn send_piece(&mut self, env: &mut Env, stream: u64) {
        let Some(out) = self.outgoing.iter_mut().find(|out| out.stream == stream) else {
            return;
        };
        if out.rest.is_empty() {
            match out.reader.next_frame() {
                Ok(Some(frame)) => out.rest = frame,
                Ok(None) => out.ending = true,
                Err(error) => {
                    return env.fail(format!("member {}: a snapshot cannot be read: {error}", self.id));
                }
            }
        }
        let frame = if out.ending {
            Frame::End {
                stream,
                number: out.number,
                message: out.message.clone(),
            }
        } else {
            let bytes = out.rest.split_to(out.rest.len().min(PIECE_BYTES));
            Frame::Piece {
                stream,
                number: out.number,
                bytes,
                last: out.rest.is_empty(),
            }
        };
        let (peer, sent) = (out.peer, out.number);
        env.transmit(self.id, peer, frame);
        let patience = 2 * env.profile.election_timeout;
        self.after(env, patience, ProcessEvent::TransferTimeout { stream, sent });
        if !env.calm && env.random.one_in(40) {
            // Transfers are short; this is how some of them are hit.
            let host = if env.random.one_in(2) { self.id } else { peer };
            let power = env.random.one_in(2);
            let delay = env.random.about(env.profile.link * 4);
            env.schedule(delay, Event::Crash { host, power });
        }
    }

    /// The receiver has a piece, or all.
    pub(crate) fn piece_received(&mut self, env: &mut Env, stream: u64, next: u64) {
        let Some(at) = self
            .outgoing
            .iter()
            .position(|out| out.stream == stream && out.number + 1 == next)
        else {
            return;
        };
        if self.outgoing[at].ending {
            let peer = self.outgoing.remove(at).peer;
            return self.push(env, Input::SnapshotSent { peer, ok: true });
        }
        self.outgoing[at].number = next;
        self.send_piece(env, stream);
    }

    /// The receiver does not want it, or nothing was heard for too long since piece `sent`.
    pub(crate) fn transfer_failed(&mut self, env: &mut Env, stream: u64, sent: Option<u64>) {
        let failed = |out: &Outgoing| out.stream == stream && sent.is_none_or(|sent| sent == out.number);
        if let Some(at) = self.outgoing.iter().position(failed) {
            let peer = self.outgoing.remove(at).peer;
            env.reach(Mark::SnapshotInterrupted);
            self.push(env, Input::SnapshotSent { peer, ok: false });
        }
    }

    /// A piece came.
    pub(crate) fn piece(
        &mut self,
        env: &mut Env,
        from: MemberId,
        stream: u64,
        number: u64,
        bytes: &[u8],
        last: bool,
    ) {
        if number == 0 {
            let sink = SnapshotSink::new(SimStore::new()).expect("a new store is empty");
            if self
                .incoming
                .replace(Incoming {
                    from,
                    stream,
                    next: 0,
                    frame: BytesMut::new(),
                    sink,
                })
                .is_some()
            {
                env.reach(Mark::SnapshotInterrupted);
            }
        }
        let fits = |incoming: &&mut Incoming| {
            (incoming.from, incoming.stream, incoming.next) == (from, stream, number)
        };
        let Some(incoming) = self.incoming.as_mut().filter(fits) else {
            return env.transmit(self.id, from, Frame::Declined { stream });
        };
        incoming.frame.extend_from_slice(bytes);
        incoming.next += 1;
        if last {
            let frame = incoming.frame.split().freeze();
            if let Err(error) = incoming.sink.push(frame) {
                return env.fail(format!(
                    "member {}: a snapshot's frame is refused: {error}",
                    self.id
                ));
            }
        }
        env.transmit(
            self.id,
            from,
            Frame::Received {
                stream,
                next: number + 1,
            },
        );
    }

    /// All pieces came.
    pub(crate) fn transfer_ends(
        &mut self,
        env: &mut Env,
        from: MemberId,
        stream: u64,
        number: u64,
        message: Bytes,
    ) {
        let fits = |incoming: &mut Incoming| (incoming.stream, incoming.next) == (stream, number);
        let Some(incoming) = self.incoming.take_if(fits) else {
            return env.transmit(self.id, from, Frame::Declined { stream });
        };
        let PeerBody::Raft(message) = PeerMessage::decode(message).expect("it was encoded here").body else {
            unreachable!("transfers carry a message of the core");
        };
        match incoming.sink.finish(self.machine_options()) {
            Ok(machine) => {
                let (term, index) = machine.applied();
                self.staged_count += 1;
                let staged = self.staged_count;
                self.staged.insert(staged, machine);
                self.push(
                    env,
                    Input::SnapshotReceived {
                        staged,
                        last: LogId { term, index },
                        message,
                    },
                );
                env.transmit(
                    self.id,
                    from,
                    Frame::Received {
                        stream,
                        next: number + 1,
                    },
                );
            }
            Err(error) => env.fail(format!(
                "member {}: a whole snapshot is refused: {error}",
                self.id
            )),
        }
    }
}
