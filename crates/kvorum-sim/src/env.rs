//! What all parts of a world share: its clock and queue of events, its randomness, its trace, the network, and the
//! record of what must be true of all members together.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::fmt::Arguments;

use bytes::Bytes;
use kvorum_mvcc::watch::{WatchOutput, WatchRequest};
use kvorum_node::{AdminError, AdminReply, AdminRequest, Input};
use kvorum_raft::{Index, MemberId, Micros, Token};

use crate::bugs::Bug;
use crate::clients::{Answer, Request};
use crate::lessees::LeaseTruth;
use crate::marks::{Mark, Marks};
use crate::network::{Frame, Network};
use crate::profile::Profile;
use crate::random::Random;
use crate::trace::Trace;
use crate::truth::Truth;
use crate::watchers::Connection;

/// Something that happens at a time.
#[derive(Debug)]
pub(crate) enum Event {
    /// Inside a process; forgotten if that process has ended meanwhile.
    Process {
        host: MemberId,
        life: u64,
        what: ProcessEvent,
    },
    /// A frame reaches a member. `life`: only that process can take it, as its connection died with it.
    Arrival {
        from: MemberId,
        to: MemberId,
        life: Option<u64>,
        frame: Frame,
    },
    /// A client's request reaches a member.
    Request {
        host: MemberId,
        client: usize,
        attempt: u64,
        request: Request,
    },
    /// An answer reaches a client.
    Answer {
        client: usize,
        attempt: u64,
        answer: Answer,
    },
    /// A client stops waiting for this attempt.
    Timeout {
        client: usize,
        attempt: u64,
    },
    /// A client begins its next operation.
    Turn {
        client: usize,
    },
    /// A watcher looks whether it has to connect anew.
    WatcherTurn {
        watcher: usize,
    },
    /// It connects, it goes; something is sent to it; its connection broke.
    Watch {
        host: MemberId,
        connection: Connection,
        request: WatchRequest,
        progress: bool,
    },
    Unwatch {
        host: MemberId,
        connection: Connection,
    },
    Watched {
        connection: Connection,
        output: WatchOutput,
    },
    WatchBroken {
        connection: Connection,
    },
    /// An administrator's request reaches a member, and its answer comes back.
    Admin {
        host: MemberId,
        id: u64,
        request: AdminRequest,
    },
    AdminAnswer {
        id: u64,
        result: Result<AdminReply, AdminError>,
    },
    /// Somebody starts a process.
    Boot {
        host: MemberId,
    },
    /// Somebody ends it.
    Crash {
        host: MemberId,
        power: bool,
    },
    /// Links work again.
    Unblock {
        links: Vec<(MemberId, MemberId)>,
    },
    /// A paused process runs again.
    Resume {
        host: MemberId,
    },
    /// A disk has its usual speed, its usual space again.
    DiskRecovers {
        host: MemberId,
    },
    /// The weather is as usual again.
    WeatherClears,
    /// The next fault is due; the administrator looks after the membership.
    NextFault,
    Administer,
    /// Faults end; then the members must come together within a minute; then everything is looked at.
    Heal,
    Look,
}

/// What happens inside a process.
#[derive(Debug)]
pub(crate) enum ProcessEvent {
    /// The replica's thread wakes up.
    Run,
    /// The log's writer has done what it took; or tries a full disk again.
    LogDone,
    LogRetry,
    /// The applier has done what it took.
    ApplyDone,
    /// The log's reader has read.
    FetchDone {
        id: u64,
        from: Index,
        to: Index,
        bytes_max: usize,
    },
    /// Reads are served from a view taken now.
    ServeReads(Vec<u64>),
    /// The network says something of its own.
    Notice(Box<Input>),
    /// A snapshot's transfer to this peer has gone on for too long without an answer.
    TransferTimeout {
        stream: u64,
        sent: u64,
    },
    /// The watch hub's turn.
    Watch,
}

struct Scheduled {
    at: Micros,
    order: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    /// The earliest is the greatest: a `BinaryHeap` gives the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

/// Shared by all parts of a world. See the module's documentation.
pub(crate) struct Env {
    pub now: Micros,
    /// Events so far: the histories' clock, which tells apart what the same microsecond holds.
    pub events: u64,
    queue: BinaryHeap<Scheduled>,
    scheduled: u64,
    pub random: Random,
    pub trace: Trace,
    pub marks: Marks,
    pub net: Network,
    pub truth: Truth,
    pub leases: LeaseTruth,
    pub profile: Profile,
    pub bug: Option<Bug>,
    /// Faults are over.
    pub calm: bool,
    /// The first thing that went wrong by itself.
    pub failure: Option<String>,
}

impl Env {
    pub(crate) fn new(random: Random, profile: Profile, trace: Trace, bug: Option<Bug>) -> Env {
        Env {
            now: 0,
            events: 0,
            queue: BinaryHeap::new(),
            scheduled: 0,
            random,
            trace,
            marks: Marks::default(),
            net: Network::default(),
            truth: Truth::new(bug.is_none_or(|bug| !bug.hides_from_invariants())),
            leases: LeaseTruth::default(),
            profile,
            bug,
            calm: false,
            failure: None,
        }
    }

    /// Lets something happen after `delay`.
    pub(crate) fn schedule(&mut self, delay: Micros, event: Event) {
        self.scheduled += 1;
        self.queue.push(Scheduled {
            at: self.now + delay,
            order: self.scheduled,
            event,
        });
    }

    /// Moves on to the next event.
    pub(crate) fn next(&mut self) -> Option<Event> {
        let Scheduled { at, event, .. } = self.queue.pop()?;
        self.now = at;
        self.events += 1;
        Some(event)
    }

    pub(crate) fn note(&mut self, what: Arguments<'_>) {
        self.trace.note(self.now, what);
    }

    pub(crate) fn reach(&mut self, mark: Mark) {
        self.marks.reach(mark);
    }

    /// The run has failed. The first reason counts.
    pub(crate) fn fail(&mut self, why: String) {
        self.note(format_args!("FAILED: {why}"));
        self.failure.get_or_insert(why);
    }

    /// Fails if a check says so.
    pub(crate) fn must(&mut self, check: Result<(), String>) {
        if let Err(why) = check {
            self.fail(why);
        }
    }

    pub(crate) fn has_bug(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// Sends a frame that takes part in the world's weather.
    pub(crate) fn transmit(&mut self, from: MemberId, to: MemberId, frame: Frame) {
        if self.net.is_blocked(from, to) {
            return self.not_sent(from, to, &frame);
        }
        let profile = &self.profile;
        let (mut loss, mut spikes) = (profile.loss, profile.delay_spikes);
        if self.net.bad_weather {
            (loss, spikes) = (loss + 100, spikes + 200);
        }
        if self.calm {
            (loss, spikes) = (0, 0);
        }
        if self.random.per_mille(loss) {
            return self.not_sent(from, to, &frame);
        }
        if let Frame::Forward { id, .. } = frame {
            self.net.note_forward(from, to, id);
            if self.has_bug(Bug::ForwardCalledUnsent) && self.random.one_in(20) {
                self.notice(from, to, 500, 0, vec![id]);
            }
        }
        let mut delay = 20 + self.random.about(self.profile.link);
        if self.random.per_mille(spikes) {
            delay += self.random.about(self.profile.election_timeout / 2);
        }
        let at = if self.profile.fifo {
            self.net.in_order(from, to, self.now + delay)
        } else {
            self.now + delay
        };
        let copies = frame.may_be_repeated() && !self.calm && self.random.per_mille(self.profile.duplication);
        if copies {
            self.reach(Mark::MessageDuplicated);
            let again = delay + self.random.about(self.profile.link * 20);
            self.schedule(
                again,
                Event::Arrival {
                    from,
                    to,
                    life: None,
                    frame: frame.clone(),
                },
            );
        }
        let life = if frame.may_be_repeated() {
            None
        } else {
            Some(self.net.life(to))
        };
        self.schedule(
            at - self.now,
            Event::Arrival {
                from,
                to,
                life,
                frame,
            },
        );
    }

    /// A frame is not sent. Of a forward the sender may hear just that, as if there was no connection; otherwise it
    /// is lost like one that was.
    fn not_sent(&mut self, from: MemberId, to: MemberId, frame: &Frame) {
        match frame {
            Frame::Forward { id, .. } if !self.random.one_in(3) => {
                self.reach(Mark::ForwardUnsent);
                let delay = self.random.between(10, 5_000);
                self.notice(from, to, delay, 0, vec![*id]);
            }
            _ => self.lost(from, to),
        }
    }

    /// A frame is lost; its sender's connection may break with it.
    pub(crate) fn lost(&mut self, from: MemberId, to: MemberId) {
        if self.random.one_in(4) && self.net.may_notice(from, to, self.now) {
            let (handed, delay) = (
                self.net.last_forward(from, to),
                self.random.between(1_000, 50_000),
            );
            self.notice(from, to, delay, handed, Vec::new());
        }
    }

    fn notice(&mut self, from: MemberId, peer: MemberId, delay: Micros, handed: Token, unsent: Vec<Token>) {
        let notice = Input::Unreachable { peer, handed, unsent };
        let (life, what) = (self.net.life(from), ProcessEvent::Notice(Box::new(notice)));
        self.schedule(
            delay,
            Event::Process {
                host: from,
                life,
                what,
            },
        );
    }

    /// Sends a client's request to one of these members, if there are any, and sets the time after which the client
    /// stops waiting: `patience`, the member's own deadline, is over before it, most of the time.
    pub(crate) fn ask(
        &mut self,
        client: usize,
        attempt: u64,
        members: &[MemberId],
        patience: Micros,
        request: Request,
    ) {
        let way = self.random.between(30, 300);
        if !members.is_empty() {
            let host = *self.random.pick(members);
            self.schedule(
                way,
                Event::Request {
                    host,
                    client,
                    attempt,
                    request,
                },
            );
        }
        let patience = patience + self.random.below(50_000);
        self.schedule(patience, Event::Timeout { client, attempt });
    }

    /// Answers a client after the way back.
    pub(crate) fn answer(&mut self, client: usize, attempt: u64, answer: Answer) {
        let delay = self.random.between(30, 300);
        self.schedule(
            delay,
            Event::Answer {
                client,
                attempt,
                answer,
            },
        );
    }

    /// A hash of bytes, for the record of what is committed.
    pub(crate) fn hash(bytes: &Bytes) -> u64 {
        xxhash_rust::xxh3::xxh3_64(bytes)
    }
}
