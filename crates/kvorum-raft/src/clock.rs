//! Time as the core sees it, and the one source of randomness.
//!
//! `now` comes in with each input; it never goes back (TM1). After a gap between inputs no timer fires before
//! the waiting messages can have been read (TM2). Everything that only concerns time stands here or is named
//! in `Raft::without_time`.

use crate::types::{MemberId, Micros};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Clock {
    pub now: Micros,
    /// Minimal election timeout.
    pub t_min: Micros,
    heartbeat: Micros,
    /// No timer fires before (TM2).
    pub grace_until: Micros,
    /// No vote, pre-vote or campaign before (RS6).
    pub silent_until: Micros,
    /// The leader heard last, and when: for T_min no other one gets a vote (EL5).
    pub promised: Option<(MemberId, Micros)>,
    /// The timeout in force, drawn from [T_min, T_max).
    timeout: Micros,
    /// When an election starts if nothing is heard.
    pub election_at: Micros,
    random: u64,
}

impl Clock {
    pub fn new(now: Micros, t_min: Micros, heartbeat: Micros, seed: u64) -> Clock {
        let mut clock = Clock {
            now,
            t_min,
            heartbeat,
            grace_until: now,
            silent_until: now + t_min,
            promised: None,
            timeout: t_min,
            election_at: now,
            random: seed,
        };
        clock.redraw();
        clock
    }

    /// T_max = 2·T_min.
    pub fn t_max(&self) -> Micros {
        2 * self.t_min
    }

    /// Time moves to `now`. False if it went back: then it stands still.
    pub fn advance(&mut self, now: Micros) -> bool {
        let forward = now >= self.now;
        if forward {
            if self.t_min > 0 && now - self.now > self.t_min / 2 {
                self.grace_until = now + self.heartbeat;
            }
            self.now = now;
        }
        forward
    }

    /// Draws a new election timeout (EL9) and starts it.
    pub fn redraw(&mut self) {
        if self.t_min > 0 {
            self.timeout = self.t_min + self.draw() % self.t_min;
        }
        self.restart_timeout();
    }

    /// Starts the timeout in force anew.
    pub fn restart_timeout(&mut self) {
        self.election_at = self.now + self.timeout;
    }

    /// The leader was heard.
    pub fn heard(&mut self, leader: MemberId) {
        self.promised = Some((leader, self.now));
        self.restart_timeout();
    }

    /// Whether another than `asker` was heard as leader less than T_min ago.
    pub fn is_promised_to_other(&self, asker: MemberId) -> bool {
        self.promised
            .is_some_and(|(leader, at)| leader != asker && self.now - at < self.t_min)
    }

    pub fn is_silent(&self) -> bool {
        self.now < self.silent_until
    }

    /// Whether timers may fire.
    pub fn is_settled(&self) -> bool {
        self.now >= self.grace_until
    }

    /// splitmix64 (Steele, Lea, Flood 2014).
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The same with everything that is only time set to nothing.
    pub fn without_time(&self) -> Clock {
        Clock {
            now: 0,
            grace_until: 0,
            silent_until: 0,
            promised: None,
            timeout: 0,
            election_at: 0,
            random: 0,
            ..self.clone()
        }
    }
}
