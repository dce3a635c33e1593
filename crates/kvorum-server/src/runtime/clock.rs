//! The member's one clock: monotonic, and running through suspend (CLOCK_BOOTTIME on Linux), so that a member
//! that slept knows that its leader's patience ended.

use std::time::{Duration, Instant};

use kvorum_raft::Micros;

/// Now, in µs since the machine booted.
pub fn now() -> Micros {
    #[cfg(target_os = "linux")]
    let id = rustix::time::ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    let id = rustix::time::ClockId::Monotonic;
    let time = rustix::time::clock_gettime(id);
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000
}

/// A caller's deadline on this clock.
pub fn deadline(now: Micros, at: Instant, instant_now: Instant) -> Micros {
    now + at.saturating_duration_since(instant_now).as_micros() as u64
}

/// When to look again, for a wait that must end at `at`.
pub fn wake_at(now: Micros, at: Micros, instant_now: Instant) -> Instant {
    instant_now + Duration::from_micros(at.saturating_sub(now))
}
