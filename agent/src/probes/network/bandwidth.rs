//! Bytes a second by interface, from the kernel's own counters, and by process,
//! from what its connections tell.

use rustc_hash::FxHashMap;
use std::time::Instant;

/// Processes that are added up in one interval.
const MAX_PROCESSES: usize = 8192;

/// What has moved since the last reading.
#[derive(Debug)]
pub struct Bandwidth {
    since: Instant,
    interfaces: FxHashMap<String, u64>,
    processes: FxHashMap<u32, (u64, String)>,
}

/// A rate of one interval.
#[derive(Debug, PartialEq)]
pub struct Rate {
    /// The interface, or the name of the process.
    pub entity: String,
    /// 0 for an interface.
    pub pid: u32,
    /// 10^6 bits a second, both directions together.
    pub mbit_s: f64,
}

impl Bandwidth {
    /// Begins; `devices` is the text of /proc/net/dev.
    #[must_use]
    pub fn new(devices: &str, now: Instant) -> Self {
        Self { since: now, interfaces: parse(devices).collect(), processes: FxHashMap::default() }
    }

    /// Adds what a process has sent and received.
    pub fn moved(&mut self, pid: u32, comm: &str, bytes: u64) {
        if let Some((total, _)) = self.processes.get_mut(&pid) {
            *total += bytes;
        } else if bytes > 0 && self.processes.len() < MAX_PROCESSES {
            self.processes.insert(pid, (bytes, comm.to_owned()));
        }
    }

    /// The rates since the last reading, of those that have any.
    pub fn rates(&mut self, devices: &str, now: Instant) -> Vec<Rate> {
        let seconds = now.saturating_duration_since(self.since).as_secs_f64().max(1e-3);
        let mbit_s = |bytes: u64| bytes as f64 * 8.0 / 1e6 / seconds;
        let interfaces: FxHashMap<String, u64> = parse(devices).collect();
        let mut rates: Vec<Rate> = interfaces
            .iter()
            // An interface that has just come, or that counts anew, has no rate yet.
            .filter_map(|(name, bytes)| Some((name, bytes.checked_sub(*self.interfaces.get(name)?)?)))
            .filter(|(_, moved)| *moved > 0)
            .map(|(name, moved)| Rate { entity: name.clone(), pid: 0, mbit_s: mbit_s(moved) })
            .collect();
        let processes = self.processes.drain();
        rates.extend(processes.map(|(pid, (bytes, entity))| Rate { entity, pid, mbit_s: mbit_s(bytes) }));
        (self.since, self.interfaces) = (now, interfaces);
        rates
    }
}

/// Name and bytes, received and sent, of each interface in /proc/net/dev (proc_net(5)).
fn parse(devices: &str) -> impl Iterator<Item = (String, u64)> {
    devices.lines().filter_map(|line| {
        let (name, numbers) = line.split_once(':')?;
        let mut numbers = numbers.split_whitespace().map(str::parse::<u64>);
        let (received, sent) = (numbers.next()?.ok()?, numbers.nth(7)?.ok()?);
        Some((name.trim().to_owned(), received.wrapping_add(sent)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    const DEVICES: &str = "Inter-|   Receive                            |  Transmit\n \
        face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls\n    \
        lo: 1000 5 0 0 0 0 0 0 1000 5 0 0 0 0 0 0\n  eth0:500 1 0 0 0 0 0 0 700 2 0 0 0 0 0 0\n";

    #[test]
    fn a_rate_is_what_moved_in_both_directions_by_time() {
        let begin = Instant::now();
        let mut bandwidth = Bandwidth::new(DEVICES, begin);
        bandwidth.moved(7, "curl", 250_000);
        bandwidth.moved(7, "curl", 250_000);
        bandwidth.moved(8, "idle", 0);
        let later = DEVICES.replace("eth0:500", "eth0:1000500").replace("lo: 1000", "lo: 10");
        let mut rates = bandwidth.rates(&later, begin + Duration::from_secs(2));
        rates.sort_by_key(|rate| rate.pid);
        let rate = |entity: &str, pid, mbit_s| Rate { entity: entity.to_owned(), pid, mbit_s };
        assert_eq!(rates, [rate("eth0", 0, 4.0), rate("curl", 7, 2.0)]);
        assert!(bandwidth.rates(&later, begin + Duration::from_secs(4)).is_empty());
    }

    proptest! {
        #[test]
        fn any_text_is_a_list_of_interfaces(text in "\\PC{0,300}") {
            let _ = parse(&text).count();
        }
    }
}
