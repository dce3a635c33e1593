//! The model: a state, what may happen in it, and what must hold.

use kvorum_raft::*;
use stateright::{Model, Property};

use crate::ledger::{Broken, Ledger};
use crate::shared::Shared;
use crate::shell::{Event, Member, Packet, Shell, is_dead};
use crate::suite::{Budget, Network, Suite, T_MIN_UNITS, UNIT};

/// Everything that may differ between two moments.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct State {
    pub members: Vec<Shared<Member>>,
    pub network: Vec<Shared<Packet>>,
    pub ledger: Shared<Ledger>,
    pub left: Budget,
    /// Units of time.
    pub now: u64,
    /// Who would answer a read without asking anyone.
    pub lease_holders: u8,
    /// The first rule that was broken; nothing happens after it.
    pub broken: Option<Broken>,
}

/// One thing that happens. `Deliver` and `Duplicate` name a packet by its place in the network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Action {
    Campaign(MemberId),
    Deliver(usize),
    Duplicate(usize),
    Persist(MemberId),
    Crash(MemberId),
    Propose(MemberId),
    Read(MemberId),
    Transfer(MemberId, MemberId),
    Change(MemberId),
    Flush(MemberId),
    Install(MemberId),
    Tick(MemberId),
    Pass,
}

impl State {
    fn member(&self, id: MemberId) -> &Shared<Member> {
        &self.members[id as usize - 1]
    }

    fn act(&mut self, suite: &Suite, id: MemberId, event: Event) {
        if self.broken.is_some() {
            return;
        }
        let mut shell = Shell {
            suite,
            member: (**self.member(id)).clone(),
            members: &self.members,
            now: local_time(suite, self.now, id),
            network: std::mem::take(&mut self.network),
            ledger: (*self.ledger).clone(),
            queue: Default::default(),
            reading: None,
        };
        let result = shell.run(event);
        let Shell {
            member,
            network,
            ledger,
            ..
        } = shell;
        self.members[id as usize - 1] = Shared::new(member);
        self.ledger = Shared::new(ledger);
        self.network = network;
        self.broken = result.err();
        let members = &self.members;
        self.network.retain(|packet| {
            let receiver = members.get(packet.message.to as usize - 1);
            receiver.is_some_and(|receiver| !is_dead(&packet.message, receiver, suite.refusals))
        });
    }

    /// A message arrives: in an ordered network those before it never will.
    fn deliver(&mut self, suite: &Suite, at: usize, again: bool) {
        let packet = self.network[at].clone();
        let mut place = 0;
        self.network.retain(|other| {
            let voided = match suite.network {
                Network::Ordered => place < at && other.queue() == packet.queue(),
                Network::Unordered => false,
            };
            let keep = if place == at { again } else { !voided };
            place += 1;
            keep
        });
        let Message { from, to, .. } = packet.message;
        let input = Input::Message(packet.message.clone());
        self.act(suite, to, Event::Input(input));
        if packet.snapshot {
            let input = Input::SnapshotSent { peer: to, ok: true };
            self.act(suite, from, Event::Input(input));
        }
    }

    /// Who would answer a read at once now: at most one, and with every commit (RD6).
    fn judge_leases(&mut self, suite: &Suite) {
        let mut holders = 0;
        for member in &self.members {
            let (mut raft, mut out) = (member.raft.clone(), Vec::new());
            let token = Token::MAX;
            raft.step(
                local_time(suite, self.now, raft.id()),
                Input::Read { token },
                &mut out,
            );
            for effect in out {
                if let Effect::ReadReady { index, .. } = effect {
                    holders += 1;
                    if index < self.ledger.highest_commit() {
                        self.broken.get_or_insert(Broken::StaleRead);
                    }
                }
            }
        }
        self.lease_holders = holders;
        if holders > 1 {
            self.broken.get_or_insert(Broken::TwoLeases);
        }
    }
}

/// What the clock of `id` shows at `now` units.
fn local_time(suite: &Suite, now: u64, id: MemberId) -> Micros {
    match &suite.clock {
        None => 0,
        Some(clock) => now * UNIT * clock.rates_ppm[id as usize - 1] / 1_000_000,
    }
}

impl Suite {
    fn faults(&self, state: &State, id: MemberId, actions: &mut Vec<Action>) {
        let (member, left) = (state.member(id), &state.left);
        let raft = &member.raft;
        let quiet = local_time(self, state.now, id) < member.quiet_until;
        let may = raft.term() < self.term_max && !raft.is_leader() && !quiet;
        // Before the first campaign nothing tells members apart that are alike, and a crash changes nothing.
        let untouched = self.is_symmetric() && left.campaigns == self.budget.campaigns;
        let chosen = self.campaigners.contains(&id) && (!untouched || self.campaigners[0] == id);
        if left.campaigns > 0 && may && chosen {
            actions.push(Action::Campaign(id));
        }
        if left.crashes > 0 && !untouched {
            actions.push(Action::Crash(id));
        }
        if left.ticks > 0 && raft.is_leader() {
            actions.push(Action::Tick(id));
        }
    }

    fn requests(&self, state: &State, id: MemberId, actions: &mut Vec<Action>) {
        let (raft, left) = (&state.member(id).raft, &state.left);
        if left.reads > 0 && raft.leader() != 0 {
            actions.push(Action::Read(id));
        }
        if !raft.is_leader() {
            return;
        }
        if left.proposals > 0 {
            actions.push(Action::Propose(id));
        }
        if left.changes > 0 {
            actions.push(Action::Change(id));
        }
        if left.transfers > 0 {
            let others = (1..=self.starts.len() as MemberId).filter(|&other| other != id);
            let fit = others.filter(|&other| raft.check_transfer(other).is_ok());
            actions.extend(fit.map(|other| Action::Transfer(id, other)));
        }
    }

    fn work(&self, state: &State, id: MemberId, actions: &mut Vec<Action>) {
        let member = state.member(id);
        if !member.writes.is_empty() {
            actions.push(Action::Persist(id));
        }
        if !member.installs.is_empty() {
            actions.push(Action::Install(id));
        }
        let machine = &member.machine;
        if state.left.flushes > 0 && machine.applied.last.index > machine.flushed.last.index {
            actions.push(Action::Flush(id));
        }
    }

    fn apply(&self, state: &mut State, action: Action) {
        let left = &mut state.left;
        let (id, event) = match action {
            Action::Deliver(at) => return state.deliver(self, at, false),
            Action::Duplicate(at) => {
                left.duplicates -= 1;
                return state.deliver(self, at, true);
            }
            Action::Pass => {
                state.now += 1;
                return;
            }
            Action::Campaign(id) => {
                left.campaigns -= 1;
                (id, Event::Campaign)
            }
            Action::Crash(id) => {
                left.crashes -= 1;
                (id, Event::Crash)
            }
            Action::Propose(id) => {
                left.proposals -= 1;
                let commands = vec![bytes::Bytes::from_static(b"x")];
                (id, Event::Input(Input::Propose { token: 1, commands }))
            }
            Action::Read(id) => {
                let token = Token::from(left.reads);
                left.reads -= 1;
                (id, Event::Input(Input::Read { token }))
            }
            Action::Transfer(id, target) => {
                left.transfers -= 1;
                (id, Event::Input(Input::TransferTo(target)))
            }
            Action::Change(id) => {
                left.changes -= 1;
                let (changes, context) = (self.change.clone(), bytes::Bytes::new());
                let input = Input::ChangeConfig {
                    token: 1,
                    changes,
                    context,
                };
                (id, Event::Input(input))
            }
            Action::Flush(id) => {
                left.flushes -= 1;
                (id, Event::Flush)
            }
            Action::Tick(id) => {
                left.ticks -= 1;
                (id, Event::Input(Input::Tick))
            }
            Action::Persist(id) => (id, Event::Persist),
            Action::Install(id) => (id, Event::Install),
        };
        state.act(self, id, event);
    }
}

/// A model with the examples that it must reach, or it proves nothing.
pub struct Checked {
    pub suite: Suite,
    pub sometimes: Vec<Property<Checked>>,
}

impl Model for Checked {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let members = (1..).zip(&self.suite.starts).map(|(id, start)| {
            Shared::new(Member::new(&self.suite, id, start).expect("the suite's first states are sound"))
        });
        let mut state = State {
            members: members.collect(),
            network: Vec::new(),
            ledger: Shared::new(Ledger::default()),
            left: self.suite.budget,
            now: self.suite.clock.as_ref().map_or(0, |_| T_MIN_UNITS),
            lease_holders: 0,
            broken: None,
        };
        for id in 1..=self.suite.starts.len() as MemberId {
            state.act(&self.suite, id, Event::Start);
        }
        if self.suite.leader_in_office {
            state.act(&self.suite, 1, Event::Campaign);
            while !state.network.is_empty() {
                state.deliver(&self.suite, 0, false);
            }
        }
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.broken.is_some() {
            return;
        }
        actions.extend((0..state.network.len()).map(Action::Deliver));
        if state.left.duplicates > 0 {
            actions.extend((0..state.network.len()).map(Action::Duplicate));
        }
        for id in 1..=self.suite.starts.len() as MemberId {
            self.suite.faults(state, id, actions);
            self.suite.requests(state, id, actions);
            self.suite.work(state, id, actions);
        }
        let end = self
            .suite
            .clock
            .as_ref()
            .map_or(0, |clock| T_MIN_UNITS + clock.units);
        if state.now < end {
            actions.push(Action::Pass);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        self.suite.apply(&mut state, action);
        let request = !matches!(
            action,
            Action::Deliver(_) | Action::Duplicate(_) | Action::Pass | Action::Crash(_)
        );
        // A request that is refused costs nothing: it is as if nobody had asked.
        if request && state.members == last.members && state.broken.is_none() {
            return None;
        }
        if self.suite.clock.is_some() {
            state.judge_leases(&self.suite);
        }
        Some(state)
    }

    fn within_boundary(&self, state: &State) -> bool {
        let terms = state.members.iter().map(|member| member.raft.term());
        terms.max() <= Some(self.suite.term_max)
    }

    fn properties(&self) -> Vec<Property<Checked>> {
        macro_rules! never {
            ($($rule:ident: $name:literal,)*) => {
                vec![$(Property::always($name, |_, state: &State| state.broken != Some(Broken::$rule)),)*]
            };
        }
        let mut properties = never![
            ElectionSafety: "at most one leader a term",
            LeaderAppendOnly: "a leader only appends",
            LogMatching: "equal entries have equal pasts",
            LeaderCompleteness: "a leader has every committed entry",
            StateMachineSafety: "only committed entries are applied",
            CommittedChanged: "a committed entry never changes",
            CommitWithoutQuorum: "a commit is of the leader's term and durable on a quorum",
            UntrueVote: "a vote is true of the disk when it leaves",
            UntrueAck: "an acknowledgement is true of the disk when it leaves",
            VotedTwice: "one vote a term, across restarts",
            StaleRead: "a read sees every commit before its arrival",
            TwoLeases: "at most one valid lease",
            PreVoteChangedReceiver: "a pre-vote leaves its receiver equal",
            PurgedWhatIsNotDurable: "only what the state holds durably is purged",
            AppliedOutOfOrder: "entries are applied in order, once",
            WriteShape: "writes continue the log on disk",
            RestartFailed: "a member restarts from its disk",
            Fatal: "no core stops",
        ];
        properties.extend(self.sometimes.iter().cloned());
        properties
    }
}
