//! A sequence of random requests, sent to kvorum and to the reference one after the other, and all answers
//! compared.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem::take;

use kvorum_client::proto::etcd;

use crate::call::{Answer, Request, Server};
use crate::cluster::Cluster;
use crate::generate::{Draw, STREAMS, Step, is_local};
use crate::intended;
use crate::reference::Reference;
use crate::unsupported;
use crate::watches::{Stream, Told};

/// Steps of a run in the gate: more than 20,000 requests.
const STEPS: usize = 20_500;
/// Long: on a busy machine, too, the first leader is to stay.
const ELECTION_TIMEOUT: &str = "3s";
/// Most watchers on one stream.
const WATCHERS_MAX: usize = 6;
/// Steps before a difference that are shown with it.
const SHOWN_STEPS: usize = 12;
/// Longest text of a step or an answer that is shown.
const SHOWN_CHARS: usize = 400;
/// A run ends after so many differences.
const DIFFERENCES_MAX: usize = 10;

fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    }
}

#[tokio::test]
#[ignore = "needs the reference: tools/etcd-diff/run"]
async fn the_same_requests_get_the_same_answers() {
    let seed = setting("KVORUM_DIFF_SEED", 1);
    let steps = setting("KVORUM_DIFF_STEPS", STEPS as u64) as usize;
    let members = setting("KVORUM_DIFF_MEMBERS", 3) as usize;
    println!("KVORUM_DIFF_SEED={seed} KVORUM_DIFF_STEPS={steps} KVORUM_DIFF_MEMBERS={members}");
    let started = tokio::time::Instant::now();
    let cluster = Cluster::start(members, &["--election-timeout", ELECTION_TIMEOUT]).await;
    // The shortest lease follows from the election timeout.
    let reference = Reference::start(&["--election-timeout=3000"]).await;
    let ours = Server::connect("kvorum", &cluster.endpoints(0)).await;
    let theirs = Server::connect("the reference", &[&reference.client]).await;
    unsupported::check(&ours).await;
    let mut run = Run::new(seed, ours, theirs);
    let mut at = 0;
    while at < steps && run.goes_on() {
        at += 1;
        run.step(at).await;
    }
    if run.goes_on() {
        run.settle_all().await;
    }
    println!(
        "{at} steps, {} requests compared, {} of them refused alike; {} events of {} watchers; revision {}; {:?}",
        run.requests,
        run.refused,
        run.events,
        run.watchers,
        run.draw.revision,
        started.elapsed(),
    );
    for difference in &run.differences {
        println!("{difference}\n");
    }
    assert!(
        run.differences.is_empty(),
        "differences from the reference; again with KVORUM_DIFF_SEED={seed} KVORUM_DIFF_STEPS={at}"
    );
}

/// The streams of watches to one member, and to the reference.
struct Pair {
    ours: Stream,
    theirs: Stream,
    watchers: BTreeSet<i64>,
    /// The latest start of a watcher: before it, nobody says that all are at the current revision.
    start_max: i64,
}

/// What the watchers of a stream were told, by their IDs.
type AllTold = BTreeMap<i64, Vec<Told>>;

impl Pair {
    fn open(ours: &Server, theirs: &Server, member: usize) -> Pair {
        Pair {
            ours: Stream::open(ours, member),
            theirs: Stream::open(theirs, 0),
            watchers: BTreeSet::new(),
            start_max: 0,
        }
    }

    /// Waits until all watchers have all up to a revision.
    async fn settle(&mut self, ours: &Server, theirs: &Server, revision: i64) {
        if !self.watchers.is_empty() {
            tokio::join!(
                self.ours.settle(ours, revision),
                self.theirs.settle(theirs, revision),
            );
        }
    }

    /// Ours and theirs, since the last time.
    fn take_told(&mut self) -> (AllTold, AllTold) {
        (take(&mut self.ours.told), take(&mut self.theirs.told))
    }
}

struct Run {
    draw: Draw,
    ours: Server,
    theirs: Server,
    /// The member that has all that was written.
    home: usize,
    pairs: [Pair; STREAMS],
    differences: Vec<String>,
    /// The last steps, for those who read of a difference.
    recent: VecDeque<String>,
    /// The servers do not have the same any more.
    is_apart: bool,
    requests: usize,
    refused: usize,
    events: usize,
    watchers: usize,
}

impl Run {
    fn new(seed: u64, ours: Server, theirs: Server) -> Run {
        let pairs = std::array::from_fn(|member| Pair::open(&ours, &theirs, member));
        Run {
            draw: Draw::new(seed),
            ours,
            theirs,
            home: 0,
            pairs,
            differences: Vec::new(),
            recent: VecDeque::new(),
            is_apart: false,
            requests: 0,
            refused: 0,
            events: 0,
            watchers: 0,
        }
    }

    fn goes_on(&self) -> bool {
        !self.is_apart && self.differences.len() < DIFFERENCES_MAX
    }

    async fn step(&mut self, number: usize) {
        let step = self.draw.step();
        self.recent.push_back(format!("{number}: {step:?}"));
        if self.recent.len() > SHOWN_STEPS {
            self.recent.pop_front();
        }
        match step {
            Step::Call { member, request } => {
                if matches!(request, Request::Compact(_)) {
                    // A watcher that lags might be cancelled, or not.
                    self.settle_all().await;
                }
                self.call(member, request).await;
            }
            Step::Watch { stream, request } => self.watch(stream, request).await,
            Step::Cancel { stream, watch_id } => self.cancel(stream, watch_id).await,
            Step::WatchCompacted { member, request } => self.watch_compacted(member, request).await,
            Step::Reopen { stream } => self.reopen(stream).await,
            Step::Settle => self.settle_all().await,
        }
    }

    /// Sends a request to both, and compares.
    async fn call(&mut self, member: usize, request: Request) {
        let member = if is_local(&request) { self.home } else { member };
        let (ours, mut theirs) = tokio::join!(
            self.ours.call(member, request.clone(), None),
            self.theirs.call(0, request.clone(), None),
        );
        self.requests += 1;
        let is_current = matches!(
            request,
            Request::Range(_)
                | Request::Put(_)
                | Request::DeleteRange(_)
                | Request::Txn(_)
                | Request::Compact(_)
                | Request::LeaseGrant(_)
                | Request::LeaseRevoke(_)
        );
        if matches!(theirs, Answer::Refused(..)) {
            self.refused += 1;
        } else if is_current {
            self.home = member;
        }
        if ours != theirs && !intended::other_fault(&request, &ours, &theirs) {
            self.is_apart = revision(&ours) != revision(&theirs);
            self.differ(
                &format!("{request:?}"),
                &format!("{ours:?}"),
                &format!("{theirs:?}"),
            );
        }
        if let (Request::Compact(compaction), Answer::Compact(_)) = (&request, &theirs) {
            self.draw.compacted = compaction.revision;
        }
        if let Some(header) = theirs.header() {
            self.draw.revision = self.draw.revision.max(header.revision);
        }
    }

    fn differ(&mut self, what: &str, ours: &str, theirs: &str) {
        let (ours, theirs) = from_where_they_part(ours, theirs);
        let steps: Vec<String> = self.recent.iter().map(|step| cut(step)).collect();
        self.differences.push(format!(
            "DIFFERENCE: {what}\n  kvorum:    {ours}\n  reference: {theirs}\n  steps before:\n    {}",
            steps.join("\n    ")
        ));
    }

    /// A write through this member: after it, its hub of watches has all that was written, too.
    async fn touch(&mut self, member: usize) {
        let put = etcd::PutRequest {
            key: "touched".into(),
            ..Default::default()
        };
        self.call(member, Request::Put(put)).await;
    }

    async fn watch(&mut self, stream: usize, request: etcd::WatchCreateRequest) {
        if self.pairs[stream].watchers.len() >= WATCHERS_MAX {
            self.reopen(stream).await;
        }
        self.touch(stream).await;
        let pair = &mut self.pairs[stream];
        let (ours, theirs) = tokio::join!(
            pair.ours.create(&self.ours, request.clone()),
            pair.theirs.create(&self.theirs, request.clone()),
        );
        if ours != theirs {
            self.is_apart = true;
            self.differ(
                &format!("{request:?}"),
                &format!("{ours:?}"),
                &format!("{theirs:?}"),
            );
            return;
        }
        if let Some(watch_id) = theirs {
            self.watchers += 1;
            pair.watchers.insert(watch_id);
            pair.start_max = pair.start_max.max(request.start_revision);
        }
    }

    async fn cancel(&mut self, stream: usize, watch_id: i64) {
        // Else some of its events come before, or do not.
        self.settle(stream).await;
        let pair = &mut self.pairs[stream];
        pair.ours.cancel(watch_id).await;
        pair.theirs.cancel(watch_id).await;
        if pair.watchers.remove(&watch_id) {
            tokio::join!(
                pair.ours.canceled(&self.ours, watch_id),
                pair.theirs.canceled(&self.theirs, watch_id),
            );
        }
    }

    async fn watch_compacted(&mut self, member: usize, request: etcd::WatchCreateRequest) {
        self.touch(member).await;
        let mut pair = Pair::open(&self.ours, &self.theirs, member);
        let (ours, theirs) = tokio::join!(
            pair.ours.create(&self.ours, request.clone()),
            pair.theirs.create(&self.theirs, request.clone()),
        );
        if let (Some(ours), Some(theirs)) = (ours, theirs) {
            tokio::join!(
                pair.ours.canceled(&self.ours, ours),
                pair.theirs.canceled(&self.theirs, theirs),
            );
        }
        self.compare_told(&format!("{request:?}"), pair.take_told());
    }

    async fn reopen(&mut self, stream: usize) {
        self.settle(stream).await;
        self.pairs[stream] = Pair::open(&self.ours, &self.theirs, stream);
    }

    /// Waits until all watchers have all, and compares what that is.
    async fn settle_all(&mut self) {
        let start_max = self.pairs.iter().map(|pair| pair.start_max).max();
        self.reach(start_max.unwrap_or(0)).await;
        if !self.goes_on() {
            return;
        }
        let revision = self.draw.revision;
        let [first, second, third] = &mut self.pairs;
        tokio::join!(
            first.settle(&self.ours, &self.theirs, revision),
            second.settle(&self.ours, &self.theirs, revision),
            third.settle(&self.ours, &self.theirs, revision),
        );
        for stream in 0..STREAMS {
            let told = self.pairs[stream].take_told();
            self.compare_told(&format!("watchers of stream {stream}"), told);
        }
    }

    /// The same of one stream.
    async fn settle(&mut self, stream: usize) {
        self.reach(self.pairs[stream].start_max).await;
        if !self.goes_on() {
            return;
        }
        let pair = &mut self.pairs[stream];
        pair.settle(&self.ours, &self.theirs, self.draw.revision).await;
        let told = pair.take_told();
        self.compare_told(&format!("watchers of stream {stream}"), told);
    }

    /// Writes until this revision is there.
    async fn reach(&mut self, revision: i64) {
        while self.draw.revision < revision && self.goes_on() {
            self.touch(0).await;
        }
    }

    fn compare_told(&mut self, what: &str, (ours, theirs): (AllTold, AllTold)) {
        let ids: BTreeSet<i64> = ours.keys().chain(theirs.keys()).copied().collect();
        for id in ids {
            let (ours, theirs) = (ours.get(&id), theirs.get(&id));
            let (ours, theirs) = (
                ours.map_or(&[][..], Vec::as_slice),
                theirs.map_or(&[][..], Vec::as_slice),
            );
            self.events += theirs.len();
            if ours == theirs {
                continue;
            }
            let same = ours
                .iter()
                .zip(theirs)
                .take_while(|(ours, theirs)| ours == theirs)
                .count();
            let what = format!("{what}, watcher {id}, after {same} things that it was told alike");
            self.differ(
                &what,
                &format!("{:?}", ours.get(same)),
                &format!("{:?}", theirs.get(same)),
            );
        }
    }
}

/// The start of a text.
fn cut(text: &str) -> String {
    text.chars().take(SHOWN_CHARS).collect()
}

/// Both texts from a little before the first character that is not the same.
fn from_where_they_part(ours: &str, theirs: &str) -> (String, String) {
    let same = ours
        .chars()
        .zip(theirs.chars())
        .take_while(|(ours, theirs)| ours == theirs)
        .count();
    let from = same.saturating_sub(SHOWN_CHARS / 2);
    let shown = |text: &str| -> String { text.chars().skip(from).take(SHOWN_CHARS).collect() };
    (shown(ours), shown(theirs))
}

/// The revision of an answer; that of a refusal is not known.
fn revision(answer: &Answer) -> Option<i64> {
    answer.clone().header().map(|header| header.revision)
}
