//! What a parent knows of its child, compared with what the agent tells of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::workload::Truth;

/// This process's own control group, as the agent should name a child's.
///
/// # Panics
/// Without procfs.
#[must_use]
pub fn own_cgroup() -> String {
    let text = fs::read_to_string("/proc/self/cgroup").expect("procfs");
    let path = |wanted: fn(&str, &str) -> bool| {
        text.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (number, controllers) = (parts.next()?, parts.next()?);
            wanted(number, controllers).then(|| parts.next().map(str::to_owned))?
        })
    };
    path(|number, _| number == "0")
        .filter(|path| path != "/")
        .or_else(|| path(|_, controllers| controllers.split(',').any(|name| name == "memory")))
        .unwrap_or_else(|| "/".into())
}

/// The longest time between two updates of a running thread's CPU time: a tick of
/// the slowest configuration (CONFIG_HZ=100), and a little for the rest of the exit.
const TICK: Duration = Duration::from_millis(11);

/// Faults that a thread may still have after the hook, as its memory is taken apart.
pub const EXIT_FAULTS: i64 = 2;

/// What the offset between the clocks may drift between two measurements, ns.
const CLOCK_NS: u128 = 1_000_000;

/// What a way to watch cannot tell, see docs/events.md.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// A fork does not say when the child began.
    pub no_start_of_fork: bool,
    /// CPU time that a process may have that is not told of: since the last update, and for
    /// the rest of its exit, which is long where a processor is emulated.
    pub untold: Duration,
    /// Faults that a process may still have after the hook.
    pub later_faults: i64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { no_start_of_fork: false, untold: TICK, later_faults: EXIT_FAULTS }
    }
}

/// Compares all that the parent knows with the events of the child, by their type.
///
/// # Panics
/// If they differ.
pub fn assert_told(
    truth: &Truth,
    events: &BTreeMap<String, Value>,
    kinds: &[&str],
    program: &str,
    arguments: &str,
    limits: Limits,
) {
    assert_eq!(events.keys().map(String::as_str).collect::<Vec<_>>(), kinds, "of {truth:?}");
    let (uid, gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
    let unix = |time: SystemTime| time.duration_since(UNIX_EPOCH).expect("after 1970").as_nanos();
    let mut last = 0;
    for kind in ["process_fork", "process_exec", "process_exit"] {
        let Some(event) = events.get(kind) else {
            continue;
        };
        assert_eq!(event["ppid"], std::process::id(), "{event}");
        assert_eq!((&event["uid"], &event["gid"]), (&json!(uid), &json!(gid)), "{event}");
        match own_cgroup().as_str() {
            // Without cgroup v2 and the memory controller of v1 there is nothing to name it by.
            "/" => assert!(event["cgroup"].is_null() || event["cgroup"] == "/", "{event}"),
            path => assert_eq!(event["cgroup"], path, "{event}"),
        }
        let time = event["timestamp"].as_u64().expect("a number");
        let (earliest, latest) = (unix(truth.before) - CLOCK_NS, unix(truth.after) + CLOCK_NS);
        assert!((earliest..=latest).contains(&u128::from(time)), "{event} {truth:?}");
        assert!(time > last, "{kind} is in its place");
        last = time;
        match limits.no_start_of_fork && kind == "process_fork" {
            true => assert_eq!(event.get("start_time"), None, "{event}"),
            false => assert!(event["start_time"].is_string(), "{event}"),
        }
    }
    let starts: BTreeSet<_> = events.values().filter_map(|event| event["start_time"].as_str()).collect();
    assert_eq!(starts.len(), 1, "{events:?}");
    for kind in ["process_exec", "process_exit"] {
        if let Some(event) = events.get(kind) {
            assert_eq!(event["filename"], program, "{event}");
            assert_eq!(event["cmdline"], arguments, "{event}");
            let base: String = program.rsplit('/').next().unwrap_or_default().chars().take(15).collect();
            assert_eq!(event["comm"], base, "{event}");
        }
    }
    let exit = &events["process_exit"];
    assert_eq!(exit.get("exit_code").and_then(Value::as_i64), truth.code.map(i64::from), "{exit}");
    let signal = truth.signal.map(|signal| nix::sys::signal::Signal::try_from(signal).expect("known").as_str());
    assert_eq!(exit.get("signal").and_then(Value::as_str), signal, "{exit}");
    let number = |field: &str| exit[field].as_u64().unwrap_or_else(|| panic!("no {field} in {exit}"));
    let cpu = Duration::from_nanos(number("utime_ns") + number("stime_ns"));
    assert!(cpu <= truth.cpu + Duration::from_micros(2), "{cpu:?}, but getrusage says {:?}", truth.cpu);
    assert!(cpu + limits.untold >= truth.cpu, "{cpu:?}, but getrusage says {:?}", truth.cpu);
    let later = truth.minor_faults - number("minor_faults").cast_signed();
    assert!((0..=limits.later_faults).contains(&later), "{later} more faults by getrusage: {exit}");
    assert_eq!(number("major_faults").cast_signed(), truth.major_faults, "{exit}");
}
