//! The process as the kernel sees it.

use super::Exposition;

/// Clock ticks a second in `/proc`; fixed by the kernel's interface.
const TICKS_PER_SECOND: f64 = 100.0;
/// Bytes of a page, as `/proc/self/statm` counts them, where the kernel says nothing else.
const PAGE_BYTES: u64 = 4096;

/// The process as the kernel sees it. What cannot be read is left out.
pub(super) fn render(page: &mut Exposition) {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).ok();
    // After the command's name, which may hold anything, the fields are numbers: state is field 3.
    let stat = read("stat");
    let fields: Option<Vec<&str>> = stat
        .as_deref()
        .and_then(|stat| stat.rsplit_once(") "))
        .map(|(_, rest)| rest.split(' ').collect());
    let field = |number: usize| fields.as_ref()?.get(number - 3)?.parse::<u64>().ok();
    if let (Some(user), Some(system)) = (field(14), field(15)) {
        let seconds = (user + system) as f64 / TICKS_PER_SECOND;
        page.counter("process_cpu_seconds_total", "CPU time of the process.")
            .sample_float(&[], seconds);
    }
    if let Some(threads) = field(20) {
        page.gauge("process_threads", "Threads of the process.")
            .sample(&[], threads);
    }
    if let Some(bytes) = field(23) {
        page.gauge("process_virtual_memory_bytes", "Virtual memory.")
            .sample(&[], bytes);
    }
    if let Some(pages) = field(24) {
        page.gauge("process_resident_memory_bytes", "Resident memory.")
            .sample(&[], pages * PAGE_BYTES);
    }
    let boot = std::fs::read_to_string("/proc/stat").ok();
    let boot = boot
        .as_deref()
        .and_then(|stat| stat.lines().find_map(|line| line.strip_prefix("btime ")));
    if let (Some(boot), Some(start)) = (boot.and_then(|text| text.parse::<f64>().ok()), field(22)) {
        let seconds = boot + start as f64 / TICKS_PER_SECOND;
        page.gauge("process_start_time_seconds", "Unix time of the start.")
            .sample_float(&[], seconds);
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        let open = open.count() as u64;
        page.gauge("process_open_fds", "Open file descriptors.")
            .sample(&[], open);
        page.gauge("os_fd_used", "Open file descriptors.")
            .sample(&[], open);
    }
    let limits = read("limits");
    let limit = limits
        .as_deref()
        .and_then(|limits| limits.lines().find(|line| line.starts_with("Max open files")));
    if let Some(limit) = limit.and_then(|line| line.split_whitespace().nth(3)?.parse::<u64>().ok()) {
        page.gauge("process_max_fds", "Limit of file descriptors.")
            .sample(&[], limit);
        page.gauge("os_fd_limit", "Limit of file descriptors.")
            .sample(&[], limit);
    }
}
