//! Accepted connections whose owner is not known yet. The handshake ends in
//! softirq, where the task is a stranger; the owner shows itself when it
//! closes, or in a look at the open files of all processes.

use agent_common::network::{Owner, Tcp};
use rustc_hash::FxHashMap;
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Connections that may wait; one more, and the oldest is told without its owner.
const MAX_WAITING: usize = 16_384;
/// A connection that lives shorter tells its owner by itself.
const SOON: Duration = Duration::from_millis(50);
/// Longest wait for an owner.
const LATE: Duration = Duration::from_secs(2);
/// A look may take one part in so many of the time.
const SHARE: u32 = 50;

/// Records that wait for an owner.
#[derive(Debug, Default)]
pub struct Accepted {
    waiting: FxHashMap<u64, Tcp>,
    /// Keys by age; some have their owner already.
    order: VecDeque<(Instant, u64)>,
    /// Owners that a look found before the record was read.
    early: FxHashMap<u64, Owner>,
    next_look: Option<Instant>,
}

impl Accepted {
    /// Keeps the record of an accept; gives back what can be told: the same one
    /// if its owner is known, or the oldest if too many wait.
    pub fn wait(&mut self, mut tcp: Tcp, now: Instant) -> Option<Tcp> {
        if let Some(owner) = self.early.remove(&tcp.key) {
            tcp.owner = owner;
            return Some(tcp);
        }
        self.waiting.insert(tcp.key, tcp);
        self.order.push_back((now, tcp.key));
        if self.waiting.len() > MAX_WAITING { self.oldest() } else { None }
    }

    /// The owner is known: the record, with it, if it has waited.
    pub fn owned(&mut self, key: u64, owner: &Owner) -> Option<Tcp> {
        let mut tcp = self.waiting.remove(&key)?;
        tcp.owner = *owner;
        Some(tcp)
    }

    /// A look has found an owner of a connection whose record has not been read.
    pub fn early(&mut self, key: u64, owner: &Owner) {
        if self.early.len() < MAX_WAITING {
            self.early.insert(key, *owner);
        }
    }

    /// When a look for owners should be made, or records are to be told without.
    pub fn due(&self) -> Option<Instant> {
        let (oldest, _) = self.order.front()?;
        let soon = *oldest + SOON;
        Some(self.next_look.map_or(soon, |next| next.max(soon)))
    }

    /// A look began at `begin` and is over `now`.
    pub fn looked(&mut self, begin: Instant, now: Instant) {
        self.next_look = Some(now + (now - begin) * SHARE + SOON);
        if self.waiting.is_empty() {
            self.order.clear();
            self.early.clear();
        }
    }

    /// Records that have waited too long, one a call.
    pub fn late(&mut self, now: Instant) -> Option<Tcp> {
        while let Some((came, key)) = self.order.front() {
            if !self.waiting.contains_key(key) {
                self.order.pop_front();
            } else if now.saturating_duration_since(*came) >= LATE {
                return self.oldest();
            } else {
                break;
            }
        }
        None
    }

    /// The record that has waited longest.
    pub fn oldest(&mut self) -> Option<Tcp> {
        while let Some((_, key)) = self.order.pop_front() {
            if let Some(tcp) = self.waiting.remove(&key) {
                return Some(tcp);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros as _;

    fn record(key: u64) -> Tcp {
        let mut tcp = Tcp::new_zeroed();
        tcp.key = key;
        tcp
    }

    fn owner(pid: u32) -> Owner {
        Owner { pid, ..Owner::default() }
    }

    #[test]
    fn a_record_is_told_once_with_the_owner_that_was_found() {
        let (mut accepted, now) = (Accepted::default(), Instant::now());
        assert!(accepted.wait(record(1), now).is_none());
        assert_eq!(accepted.owned(1, &owner(7)).map(|tcp| tcp.owner.pid), Some(7));
        assert!(accepted.owned(1, &owner(7)).is_none());
        assert!(accepted.late(now + 2 * LATE).is_none());
    }

    #[test]
    fn an_owner_that_was_found_first_is_kept_for_the_record() {
        let mut accepted = Accepted::default();
        accepted.early(1, &owner(7));
        assert_eq!(accepted.wait(record(1), Instant::now()).map(|tcp| tcp.owner.pid), Some(7));
    }

    #[test]
    fn a_record_without_owner_is_told_after_a_while() {
        let (mut accepted, now) = (Accepted::default(), Instant::now());
        accepted.wait(record(1), now);
        assert_eq!(accepted.due(), Some(now + SOON));
        assert!(accepted.late(now + LATE / 2).is_none());
        assert_eq!(accepted.late(now + LATE).map(|tcp| tcp.key), Some(1));
        assert!(accepted.due().is_none());
    }

    #[test]
    fn no_more_wait_than_the_bound() {
        let (mut accepted, now) = (Accepted::default(), Instant::now());
        let told: Vec<u64> =
            (1..=MAX_WAITING as u64 + 2).filter_map(|key| accepted.wait(record(key), now)).map(|tcp| tcp.key).collect();
        assert_eq!(told, [1, 2]);
        assert_eq!(accepted.waiting.len(), MAX_WAITING);
    }
}
