//! What a seed makes of its world: sizes, speeds, and which faults strike how often.
//!
//! Not every fault is on in every world (swarm testing: Groce et al. 2012): a world with everything on spends its
//! time in elections and never reaches the situations that need a calm stretch first.

use kvorum_raft::Micros;

use crate::random::Random;

/// Something that goes wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// A process is killed; what it wrote stays in the page cache, what its store had in memory is lost.
    Kill,
    /// A machine loses power: un-synced log writes are lost, torn or kept in any order.
    PowerLoss,
    /// All machines lose power at once.
    PowerLossEverywhere,
    /// A process gets no time for a while (SIGSTOP, a long pause of a virtual machine).
    Pause,
    /// A member is cut off, in both directions.
    Isolate,
    /// A member hears but is not heard, or the reverse; or one link works in one direction only.
    OneWay,
    /// Two groups do not hear each other.
    Split,
    /// Each member hears only its neighbours on a ring.
    Ring,
    /// Many messages are late or lost for a while.
    BadWeather,
    /// A disk takes long for each write for a while.
    SlowDisk,
    /// A disk is full for a while.
    FullDisk,
    /// A write or sync of the log fails.
    BrokenDisk,
    /// A member is added, promoted, removed.
    Membership,
    /// A member loses its disk, and is replaced by a new one.
    LostDisk,
    /// Leadership is handed over.
    Transfer,
}

impl Fault {
    const ALL: [Fault; 15] = [
        Fault::Kill,
        Fault::PowerLoss,
        Fault::PowerLossEverywhere,
        Fault::Pause,
        Fault::Isolate,
        Fault::OneWay,
        Fault::Split,
        Fault::Ring,
        Fault::BadWeather,
        Fault::SlowDisk,
        Fault::FullDisk,
        Fault::BrokenDisk,
        Fault::Membership,
        Fault::LostDisk,
        Fault::Transfer,
    ];
}

/// The constants of one world, drawn from its seed.
#[derive(Clone, Debug)]
pub(crate) struct Profile {
    pub founders: u64,
    pub clients: u64,
    pub keys: u64,
    /// A client's mean pause between two requests.
    pub think: Micros,
    pub election_timeout: Micros,
    pub heartbeat_interval: Micros,
    pub lease_reads: bool,
    pub lease_checkpoint_interval: Micros,
    /// Mean delay of a message.
    pub link: Micros,
    /// Whether messages of one link keep their order.
    pub fifo: bool,
    /// Messages lost, delivered twice, and held up for long, in a thousand.
    pub loss: u64,
    pub duplication: u64,
    pub delay_spikes: u64,
    /// Mean time of a log write, and of applying a slice.
    pub disk: Micros,
    pub apply: Micros,
    /// After one in so many applications the store flushes some batches.
    pub flush_one_in: u64,
    /// Bytes of flushed log kept for members that lag.
    pub retain_bytes_max: u64,
    /// Bytes of entries that the core keeps in memory.
    pub cache_bytes_max: usize,
    /// Longest values, in bytes.
    pub value_bytes_max: u64,
    /// Clocks run wrong by up to so many parts in a million.
    pub drift_ppm: u64,
    /// Mean time between two faults.
    pub fault_interval: Micros,
    /// The faults that are on, some of them more than once: each strikes as often as it stands here.
    pub faults: Vec<Fault>,
}

impl Profile {
    pub(crate) fn draw(random: &mut Random, founders: (u64, u64)) -> Profile {
        let election_timeout = *random.pick(&[250_000, 500_000, 750_000]);
        let mut faults: Vec<Fault> = Fault::ALL.into_iter().filter(|_| random.per_mille(700)).collect();
        let favourite = *random.pick(&Fault::ALL);
        faults.extend([favourite; 3]);
        let lossy = random.one_in(2);
        Profile {
            founders: random.between(founders.0, founders.1),
            clients: random.between(4, 16),
            keys: random.between(3, 12),
            think: *random.pick(&[1_000, 5_000, 20_000]),
            election_timeout,
            heartbeat_interval: election_timeout / random.between(5, 8),
            lease_reads: random.one_in(4),
            lease_checkpoint_interval: *random.pick(&[300_000, 1_000_000, 2_500_000]),
            link: *random.pick(&[100, 500, 2_000, 5_000]),
            fifo: random.one_in(2),
            loss: if lossy { random.below(30) } else { 0 },
            duplication: if lossy { random.below(30) } else { 0 },
            delay_spikes: random.below(5),
            disk: *random.pick(&[200, 1_000, 5_000]),
            apply: *random.pick(&[50, 200, 2_000]),
            flush_one_in: *random.pick(&[2, 10, 50]),
            retain_bytes_max: *random.pick(&[2 << 10, 16 << 10, 128 << 10, 1 << 20]),
            cache_bytes_max: *random.pick(&[4 << 10, 64 << 10, 1 << 20]),
            value_bytes_max: *random.pick(&[16, 200, 1500]),
            drift_ppm: *random.pick(&[0, 100, 9_000]),
            fault_interval: *random.pick(&[500_000, 1_500_000, 4_000_000]),
            faults,
        }
    }
}
