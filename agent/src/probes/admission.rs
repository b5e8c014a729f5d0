//! The filters and the rate that the kernel side applies (agent-ebpf/src/admit.rs),
//! for events that a room makes itself.

use crate::config;
use agent_common::Unsent;

/// Which events of a room are wanted.
pub struct Admission {
    excluded_uids: Vec<u32>,
    excluded_comms: Vec<String>,
    own_pid: u32,
    bucket: Bucket,
}

impl Admission {
    /// By the settings of a room.
    #[must_use]
    pub fn new(room: &config::Room) -> Self {
        Self {
            excluded_uids: room.exclude_uids.clone(),
            excluded_comms: room.exclude_comms.clone(),
            own_pid: std::process::id(),
            bucket: Bucket::new(room.rate_limit, room.rate_burst),
        }
    }

    /// The room's filters and its rate, in that order; `comm` without NUL, `now` in ns.
    ///
    /// # Errors
    /// Why the event is not wanted.
    pub fn admit(&mut self, pid: u32, uid: u32, comm: &[u8], now: u64) -> Result<(), Unsent> {
        if self.excludes(pid, uid, comm) { Err(Unsent::Filtered) } else { self.bucket.take(now) }
    }

    /// Whether the filters are against it.
    #[must_use]
    pub fn excludes(&self, pid: u32, uid: u32, comm: &[u8]) -> bool {
        pid == self.own_pid
            || self.excluded_uids.contains(&uid)
            || self.excluded_comms.iter().any(|excluded| excluded.as_bytes() == comm)
    }
}

/// The token bucket of the kernel side (see agent-ebpf/src/admit.rs).
struct Bucket {
    interval_ns: u64,
    burst_ns: u64,
    full_at: u64,
}

impl Bucket {
    fn new(rate: u64, burst: u64) -> Self {
        let interval_ns = 1_000_000_000u64.checked_div(rate).unwrap_or(0);
        Self { interval_ns, burst_ns: interval_ns.saturating_mul(burst), full_at: 0 }
    }

    fn take(&mut self, now: u64) -> Result<(), Unsent> {
        let next = self.full_at.max(now) + self.interval_ns;
        if self.interval_ns != 0 && next > now + self.burst_ns {
            return Err(Unsent::RateLimited);
        }
        self.full_at = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bucket_lets_a_burst_through_and_then_the_rate() {
        let mut bucket = Bucket::new(10, 3);
        let admitted = |bucket: &mut Bucket, now| (0..10).filter(|_| bucket.take(now).is_ok()).count();
        assert_eq!(admitted(&mut bucket, 1_000_000_000), 3);
        assert_eq!(admitted(&mut bucket, 1_000_000_000), 0);
        assert_eq!(admitted(&mut bucket, 1_200_000_000), 2);
        assert_eq!(admitted(&mut Bucket::new(0, 0), 0), 10);
    }
}
