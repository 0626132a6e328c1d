//! What /proc says about processes, their kernel programs and maps, and the machine.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};

/// Processor time of a process, all threads, microseconds since its start: user and system, as /proc/PID/stat counts it.
pub fn cpu_us(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process lives");
    // Fields are counted after the name, which may hold blanks: utime and stime are 14 and 15 of proc(5).
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks: f64 = fields[11..13].iter().map(|field| field.parse::<f64>().expect("a number")).sum();
    // SAFETY: reads a number.
    ticks * 1e6 / unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64
}

/// Resident memory, KiB.
pub fn rss_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    number_after(&status, "VmRSS:").expect("a process has VmRSS")
}

/// What the kernel programs of a process have used since statistics were switched on.
#[derive(Clone, Copy, Default)]
pub struct Programs {
    /// Nanoseconds of all runs.
    pub run_ns: u64,
    /// Runs.
    pub runs: u64,
}

/// The kernel programs that a process holds open.
pub fn programs(pid: u32) -> Programs {
    let rows = by_id(pid, "prog_id:");
    let sum = |field: &str| rows.iter().filter_map(|text| number_after(text, field)).sum();
    Programs { run_ns: sum("run_time_ns:"), runs: sum("run_cnt:") }
}

/// Memory of all kernel maps that a process holds open, octets, and the largest of them.
pub fn map_memory(pid: u32) -> (u64, Value) {
    let maps = by_id(pid, "map_id:");
    let mut rows: Vec<_> = maps
        .iter()
        .map(|text| {
            ["memlock:", "map_type:", "key_size:", "value_size:", "max_entries:"]
                .map(|key| number_after(text, key).unwrap_or(0))
        })
        .collect();
    rows.sort_by(|a, b| b.cmp(a));
    let total = rows.iter().map(|row| row[0]).sum();
    let largest: Vec<Value> = rows
        .iter()
        .take(4)
        .map(|[memory, kind, key, value, entries]| {
            json!({"kib": memory / 1024, "type": kind, "key_octets": key, "value_octets": value, "max_entries": entries})
        })
        .collect();
    (total, json!({"maps": rows.len(), "kib": total / 1024, "largest": largest}))
}

/// Switches the kernel's statistics of BPF programs on until this is dropped; no setting of the machine changes.
pub struct ProgramStatistics(#[expect(dead_code, reason = "open is what it is for")] std::os::fd::OwnedFd);

impl ProgramStatistics {
    pub fn on() -> ProgramStatistics {
        use std::os::fd::FromRawFd;
        // SAFETY: takes a number; the descriptor that it returns is ours alone.
        let fd = unsafe { libbpf_sys::bpf_enable_stats(libbpf_sys::BPF_STATS_RUN_TIME) };
        assert!(fd >= 0, "BPF statistics can be switched on");
        // SAFETY: checked above.
        ProgramStatistics(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) })
    }
}

/// What it ran on, and how busy that was: load averages tell how far to trust a figure.
pub fn machine() -> Value {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let load = read("/proc/loadavg");
    let model = read("/proc/cpuinfo");
    let model = model.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap_or("unknown");
    json!({
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "cpu": model,
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "load_1m": load.split(' ').next().and_then(|load| load.parse::<f64>().ok()),
    })
}

/// The fdinfo of each kernel object that a process holds, once each.
fn by_id(pid: u32, field: &str) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("the process lives");
    let texts = entries.flatten().filter_map(|entry| fs::read_to_string(entry.path()).ok());
    let rows: BTreeMap<u64, String> = texts.filter_map(|text| Some((number_after(&text, field)?, text))).collect();
    rows.into_values().collect()
}

fn number_after(text: &str, field: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(field))?;
    rest.split_whitespace().next()?.parse().ok()
}
