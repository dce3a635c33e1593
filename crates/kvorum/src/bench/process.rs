//! What processes used: from `/proc` for servers, from the process clock for the bench itself.

use std::fs;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// What a process has used so far, and uses now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// User and system time.
    pub cpu: Duration,
    /// Resident memory in bytes.
    pub rss: u64,
}

/// CPU time of this process.
pub fn own_cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        time.tv_sec.try_into().unwrap_or(0),
        time.tv_nsec.try_into().unwrap_or(0),
    )
}

/// What another process used; `None` if there is none of this number.
pub fn usage(pid: u32) -> Option<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let rss_kib = field(&status, "VmRSS:").unwrap_or(0);
    Some(Usage {
        cpu: cpu(&stat)?,
        rss: rss_kib * 1024,
    })
}

/// Fields 14 and 15 of proc_pid_stat(5), in clock ticks; the name before them may hold anything.
fn cpu(stat: &str) -> Option<Duration> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    let hertz = rustix::param::clock_ticks_per_second().max(1);
    Some(Duration::from_micros(ticks * 1_000_000 / hertz))
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines_with_any_name() {
        let line = "42 (a) b (c)) S 1 1 1 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 8 0 100 1 1";
        let hertz = rustix::param::clock_ticks_per_second();
        assert_eq!(cpu(line).unwrap(), Duration::from_micros(200 * 1_000_000 / hertz));
        assert_eq!(cpu("42 (x"), None);
    }

    #[test]
    fn this_process_is_found() {
        let usage = usage(std::process::id()).unwrap();
        assert!(usage.rss > 0);
        assert!(own_cpu() > Duration::ZERO);
        assert_eq!(super::usage(u32::MAX), None);
    }
}
