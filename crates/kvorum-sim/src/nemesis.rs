//! Who makes things go wrong: faults on a schedule, and an administrator who changes the membership.
//!
//! What it may never do is what no operator may: destroy the disks of so many members at once that the cluster
//! cannot go on. Everything else may overlap.

use std::collections::BTreeMap;

use kvorum_model::MemberRecord;
use kvorum_node::{AdminError, AdminReply, AdminRequest};
use kvorum_raft::{Configuration, MemberId};

use crate::env::{Env, Event};
use crate::host::Host;
use crate::marks::Mark;
use crate::profile::Fault;

/// Members at most, learners included.
const MEMBERS_MAX: usize = 7;

type Hosts = BTreeMap<MemberId, Host>;

/// What the administrator waits for.
#[derive(Debug)]
struct Asked {
    id: u64,
    request: AdminRequest,
    give_up_at: u64,
}

/// Faults and administration.
#[derive(Debug, Default)]
pub(crate) struct Nemesis {
    next_id: u64,
    asked: Option<Asked>,
    /// Members that replace one which lost its disk, and do not vote yet.
    successors: Vec<MemberId>,
    promoted: Vec<MemberId>,
}

/// The member that leads in the highest term, as far as anyone knows.
pub(crate) fn leader(hosts: &Hosts) -> Option<MemberId> {
    let leads = |host: &&Host| host.process().is_some_and(|process| process.node().is_leader());
    let term = |host: &&Host| host.process().map_or(0, |process| process.node().raft().term());
    hosts.values().filter(leads).max_by_key(term).map(|host| host.id)
}

/// The leader's configuration.
pub(crate) fn configuration(hosts: &Hosts) -> Option<Configuration> {
    let process = hosts[&leader(hosts)?].process()?;
    Some(process.node().raft().latest_configuration().clone())
}

fn running(hosts: &Hosts) -> Vec<MemberId> {
    hosts
        .values()
        .filter(|host| host.process().is_some())
        .map(|host| host.id)
        .collect()
}

fn links_between(left: &[MemberId], right: &[MemberId], both_ways: bool) -> Vec<(MemberId, MemberId)> {
    let there = left
        .iter()
        .flat_map(|&from| right.iter().map(move |&to| (from, to)));
    let back = right
        .iter()
        .flat_map(|&from| left.iter().map(move |&to| (from, to)));
    there
        .chain(back.filter(|_| both_ways))
        .filter(|(from, to)| from != to)
        .collect()
}

impl Nemesis {
    /// Something goes wrong now.
    pub(crate) fn strike(&mut self, env: &mut Env, hosts: &mut Hosts) {
        if env.calm {
            return;
        }
        let pause = env.random.about(env.profile.fault_interval);
        env.schedule(pause, Event::NextFault);
        let up = running(hosts);
        if up.is_empty() || env.profile.faults.is_empty() {
            return;
        }
        let fault = *env.random.pick(&env.profile.faults.clone());
        // Leaders are hit more often than their share.
        let leader = leader(hosts).filter(|_| env.random.one_in(2));
        let victim = leader.unwrap_or(*env.random.pick(&up));
        env.note(format_args!("fault: {fault:?}, perhaps of {victim}"));
        match fault {
            Fault::Kill => crash(env, victim, false),
            Fault::PowerLoss => crash(env, victim, true),
            Fault::PowerLossEverywhere => {
                env.reach(Mark::AllRestarted);
                up.iter().for_each(|&host| crash(env, host, true));
            }
            Fault::Pause => {
                hosts.get_mut(&victim).expect("it runs").pause(env);
                let length = env.random.about(3 * env.profile.election_timeout);
                env.schedule(length, Event::Resume { host: victim });
            }
            Fault::Isolate => partition(env, links_between(&[victim], &up, true)),
            Fault::OneWay => one_way(env, victim, &up),
            Fault::Split => {
                let (left, right): (Vec<_>, Vec<_>) = up.iter().partition(|_| env.random.one_in(2));
                partition(env, links_between(&left, &right, true));
            }
            Fault::Ring => ring(env, &up),
            Fault::BadWeather => {
                env.net.bad_weather = true;
                let length = env.random.about(3_000_000);
                env.schedule(length, Event::WeatherClears);
            }
            Fault::SlowDisk | Fault::FullDisk => {
                disk_weather(env, fault, hosts.get_mut(&victim).expect("it runs"))
            }
            Fault::BrokenDisk => hosts.get_mut(&victim).expect("it runs").break_disk(env),
            Fault::Membership => self.change_membership(env, hosts),
            Fault::LostDisk => self.lose_disk(env, hosts, victim),
            Fault::Transfer => {
                let target = if env.random.one_in(3) { 0 } else { victim };
                self.ask(env, hosts, AdminRequest::Transfer(target));
            }
        }
    }

    /// The administrator looks after the cluster: starts members that were added, replaces those that lost their
    /// disks, promotes learners now and then.
    pub(crate) fn administer(&mut self, env: &mut Env, hosts: &mut Hosts) {
        let pause = env.random.about(400_000);
        env.schedule(pause, Event::Administer);
        if self
            .asked
            .as_ref()
            .is_some_and(|asked| asked.give_up_at <= env.now)
        {
            self.asked = None;
        }
        let Some(configuration) = configuration(hosts) else {
            return;
        };
        self.note_voters(env, &configuration);
        // Somebody that was added without our hearing of it.
        for id in configuration.members() {
            self.start_joiner(env, hosts, id);
        }
        if self.asked.is_some() || configuration.is_joint() {
            return;
        }
        let lost = configuration
            .members()
            .into_iter()
            .find(|id| hosts[id].is_destroyed());
        if let Some(old) = lost {
            return self.ask(
                env,
                hosts,
                AdminRequest::Replace {
                    old,
                    new: MemberRecord::default(),
                },
            );
        }
        let learner = configuration.learners.first().copied();
        if let Some(learner) = learner.filter(|_| env.calm || env.random.one_in(3)) {
            self.ask(env, hosts, AdminRequest::Promote(learner));
        }
    }

    fn note_voters(&mut self, env: &mut Env, configuration: &Configuration) {
        let votes = |id: &MemberId| configuration.voters.contains(id);
        if self.successors.extract_if(.., |id| votes(id)).count() > 0 {
            env.reach(Mark::MemberReplaced);
        }
        if self.promoted.extract_if(.., |id| votes(id)).count() > 0 {
            env.reach(Mark::LearnerPromoted);
        }
    }

    fn start_joiner(&mut self, env: &mut Env, hosts: &mut Hosts, id: MemberId) {
        if hosts.contains_key(&id) {
            return;
        }
        env.note(format_args!("{id} joins"));
        let host = Host::new(env, id, Vec::new());
        hosts.insert(id, host);
        let delay = env.random.about(300_000);
        env.schedule(delay, Event::Boot { host: id });
    }

    fn change_membership(&mut self, env: &mut Env, hosts: &mut Hosts) {
        let Some(configuration) = configuration(hosts) else {
            return;
        };
        let members: Vec<MemberId> = configuration.members().into_iter().collect();
        // While a disk is lost, only its replacement may change who votes.
        if self.asked.is_some()
            || members
                .iter()
                .any(|id| hosts.get(id).is_none_or(Host::is_destroyed))
        {
            return;
        }
        let grow = members.len() < 4 || (members.len() < MEMBERS_MAX && env.random.one_in(2));
        if grow {
            return self.ask(env, hosts, AdminRequest::AddLearner(MemberRecord::default()));
        }
        let leader = leader(hosts);
        let victim = leader
            .filter(|_| env.random.one_in(3))
            .unwrap_or(*env.random.pick(&members));
        if leader == Some(victim) {
            env.reach(Mark::LeaderRemovedItself);
        }
        self.ask(env, hosts, AdminRequest::Remove(victim));
    }

    /// A disk may be lost if all other members are there, agree on who is a member, and are enough.
    fn lose_disk(&mut self, env: &mut Env, hosts: &mut Hosts, victim: MemberId) {
        let Some(configuration) = configuration(hosts) else {
            return;
        };
        let agrees = |id: MemberId| {
            let process = hosts.get(&id).and_then(Host::process);
            process.is_some_and(|process| {
                let raft = process.node().raft();
                *raft.latest_configuration() == configuration
                    && *raft.committed_configuration() == configuration
            })
        };
        let settled = !configuration.is_joint() && configuration.members().into_iter().all(agrees);
        let enough = configuration.voters.len() >= 3 && configuration.voters.contains(&victim);
        if settled && enough && self.asked.is_none() {
            hosts.get_mut(&victim).expect("it is a member").destroy(env);
        }
    }

    fn ask(&mut self, env: &mut Env, hosts: &Hosts, request: AdminRequest) {
        let Some(host) = leader(hosts).filter(|_| self.asked.is_none()) else {
            return;
        };
        self.next_id += 1;
        let id = self.next_id;
        env.note(format_args!("{host} is asked: {request:?}"));
        let give_up_at = env.now + 12 * env.profile.election_timeout;
        self.asked = Some(Asked {
            id,
            request: request.clone(),
            give_up_at,
        });
        env.schedule(200, Event::Admin { host, id, request });
    }

    /// An answer to the administrator.
    pub(crate) fn answered(
        &mut self,
        env: &mut Env,
        hosts: &mut Hosts,
        id: u64,
        result: Result<AdminReply, AdminError>,
    ) {
        env.note(format_args!("the administrator hears: {result:?}"));
        let Some(asked) = self.asked.take_if(|asked| asked.id == id) else {
            return;
        };
        match (asked.request, result) {
            (AdminRequest::AddLearner(_), Ok(AdminReply::Changed(Some(new)))) => {
                self.start_joiner(env, hosts, new)
            }
            (AdminRequest::Replace { .. }, Ok(AdminReply::Changed(Some(new)))) => {
                self.successors.push(new);
                self.start_joiner(env, hosts, new);
            }
            (AdminRequest::Promote(id), Ok(_)) => self.promoted.push(id),
            (AdminRequest::Transfer(_), Ok(_)) => env.reach(Mark::LeadershipTransferred),
            _ => {}
        }
    }
}

fn crash(env: &mut Env, host: MemberId, power: bool) {
    let moment = env.random.below(20_000);
    env.schedule(moment, Event::Crash { host, power });
}

fn partition(env: &mut Env, links: Vec<(MemberId, MemberId)>) {
    let length = env.random.about(3 * env.profile.election_timeout);
    env.net.block(&links);
    env.schedule(length, Event::Unblock { links });
}

fn one_way(env: &mut Env, victim: MemberId, up: &[MemberId]) {
    env.reach(Mark::OneWayPartition);
    let other = *env.random.pick(up);
    let links = match env.random.below(3) {
        0 => links_between(&[victim], up, false),
        1 => links_between(up, &[victim], false),
        _ => links_between(&[victim], &[other], false),
    };
    partition(env, links);
}

fn ring(env: &mut Env, up: &[MemberId]) {
    let count = up.len();
    let far = |i: usize, j: usize| (i + 1) % count != j && (j + 1) % count != i && i != j;
    let pairs = (0..count).flat_map(|i| (0..count).map(move |j| (i, j)));
    let links: Vec<_> = pairs
        .filter(|&(i, j)| far(i, j))
        .map(|(i, j)| (up[i], up[j]))
        .collect();
    if !links.is_empty() {
        env.reach(Mark::RingPartition);
        partition(env, links);
    }
}

fn disk_weather(env: &mut Env, fault: Fault, host: &mut Host) {
    match fault {
        Fault::SlowDisk => host.disk_delay = *env.random.pick(&[20_000, 200_000, 2_000_000]),
        _ => {
            let used = host.process().map_or(0, |process| process.disk.used());
            host.disk_capacity = Some(used + env.random.below(64 << 10));
        }
    }
    host.apply_disk_weather();
    let length = env.random.about(4_000_000);
    env.schedule(length, Event::DiskRecovers { host: host.id });
}
