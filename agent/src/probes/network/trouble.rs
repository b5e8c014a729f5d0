//! What went wrong, from the kernel's counts to what is new since the last
//! reading.

use super::connection::Errno;
use crate::config::Period;
use agent_common::network::{Trouble, TroubleKey, trouble};
use rustc_hash::FxHashMap;
use std::fmt::Write as _;

/// Reasons of no trouble: none is given, or a socket was closed with something in its queue.
const NO_REASON: [&str; 4] = ["NOT_SPECIFIED", "NOT_DROPPED_YET", "CONSUMED", "QUEUE_PURGE"];
const REASON: &str = "SKB_DROP_REASON_";
/// Of `SKB_CONSUMED`.
const PACKET: &str = "SKB_";

/// Counts and times that were told last.
#[derive(Debug, Default)]
pub struct Troubles {
    told: FxHashMap<TroubleKey, (u64, u64)>,
    /// Packets sent again, dropped, and so on, by kind; index is [`TroubleKey::what`].
    total: [u64; trouble::KINDS],
}

/// What is new under one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct News {
    /// What, where, who.
    pub key: TroubleKey,
    /// Example and interface.
    pub trouble: Trouble,
    /// How often since it was last told.
    pub count: u64,
    /// Time it took since then, in all, ns.
    pub time_ns: u64,
}

impl Troubles {
    /// What is new in all entries of the kernel's map, and the keys that may go
    /// since nothing was new.
    pub fn news(&mut self, entries: &[(TroubleKey, Trouble)]) -> (Vec<News>, Vec<TroubleKey>) {
        let (mut news, mut idle) = (Vec::new(), Vec::new());
        let mut told = FxHashMap::default();
        for (key, trouble) in entries {
            // An entry that was removed and made again counts from the beginning.
            let (times, time_ns) =
                self.told.get(key).copied().filter(|(times, _)| *times <= trouble.count).unwrap_or_default();
            let count = trouble.count - times;
            if count == 0 {
                idle.push(*key);
                continue;
            }
            told.insert(*key, (trouble.count, trouble.time_ns));
            // What is counted by connection is counted by interface, too.
            if key.who == 0 || key.what != trouble::RETRANSMIT {
                self.total[slot(key.what)] += count;
            }
            news.push(News { key: *key, trouble: *trouble, count, time_ns: trouble.time_ns.saturating_sub(time_ns) });
        }
        self.told = told;
        (news, idle)
    }

    /// How often something of a kind ([`trouble`]) was told.
    #[must_use]
    pub fn total(&self, what: u32) -> u64 {
        self.total[slot(what)]
    }
}

/// Where a kind is counted; one that is not known as 0.
fn slot(what: u32) -> usize {
    Some(what as usize).filter(|slot| *slot < trouble::KINDS).unwrap_or(0)
}

impl News {
    /// The event it is told by: `error.net` or `transport.drop`.
    #[must_use]
    pub fn event(&self) -> &'static str {
        match self.key.what {
            trouble::QUEUE_FULL | trouble::DROP | trouble::STALL => "transport.drop",
            _ => "error.net",
        }
    }

    /// Which way a stalled call went, `transmit` or `receive`.
    #[must_use]
    pub fn direction(&self) -> Option<&'static str> {
        match (self.key.what, self.key.code) {
            (trouble::STALL, trouble::SENDING) => Some("transmit"),
            (trouble::STALL, trouble::RECEIVING) => Some("receive"),
            _ => None,
        }
    }

    /// Writes what happened and how often: `RETRANSMIT:5`. Returns whether that says
    /// anything; `reason` names the kernel's reason of a drop, `threshold` is that of stalls.
    pub fn value(&self, reason: Option<&str>, threshold: Period, out: &mut String) -> bool {
        out.clear();
        let what = match self.key.what {
            trouble::RETRANSMIT => "RETRANSMIT",
            trouble::RESET_SENT => "RESET_SENT",
            trouble::QUEUE_FULL => "QUEUE_FULL",
            trouble::STALL => return write!(out, "STALL_{threshold}:{}", self.count).is_ok(),
            trouble::SOCKET_ERROR => match Errno(self.key.code as i32) {
                errno if errno.is_reset() => "RESET",
                errno => errno.name(),
            },
            _ => match reason.map(|name| name.strip_prefix(REASON).or(name.strip_prefix(PACKET)).unwrap_or(name)) {
                Some(name) if NO_REASON.contains(&name) => return false,
                Some(name) => name,
                None => {
                    return write!(out, "REASON_{}:{}", self.key.code, self.count).is_ok();
                }
            },
        };
        write!(out, "{what}:{}", self.count).is_ok()
    }

    /// Whether it happened to a connection, and not to an interface as a whole.
    #[must_use]
    pub fn is_of_socket(&self) -> bool {
        self.key.who != 0 && self.trouble.ends.family != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(what: u32, who: u64, count: u64) -> (TroubleKey, Trouble) {
        (TroubleKey { what, who, ..Default::default() }, Trouble { count, ..Default::default() })
    }

    #[test]
    fn only_what_is_new_is_told() {
        let mut troubles = Troubles::default();
        let count = |news: &[News]| news.iter().map(|news| news.count).collect::<Vec<_>>();
        let (news, idle) = troubles.news(&[entry(trouble::RETRANSMIT, 0, 5)]);
        assert_eq!((count(&news), idle.len()), (vec![5], 0));
        let (news, _) = troubles.news(&[entry(trouble::RETRANSMIT, 0, 7), entry(trouble::DROP, 0, 1)]);
        assert_eq!(count(&news), [2, 1]);
        let (news, idle) = troubles.news(&[entry(trouble::RETRANSMIT, 0, 7)]);
        assert_eq!((count(&news), idle.len()), (vec![], 1));
        // Removed, and made again.
        let (news, _) = troubles.news(&[entry(trouble::RETRANSMIT, 0, 3)]);
        assert_eq!((count(&news), troubles.total(trouble::RETRANSMIT)), (vec![3], 10));
    }

    #[test]
    fn a_value_says_what_and_how_often() {
        let value = |what, code, reason| {
            let key = TroubleKey { what, code, ..Default::default() };
            let mut text = String::new();
            let news = News { key, trouble: Trouble::default(), count: 5, time_ns: 0 };
            news.value(reason, "100ms".parse().expect("a time"), &mut text).then_some(text)
        };
        assert_eq!(value(trouble::RETRANSMIT, 0, None).as_deref(), Some("RETRANSMIT:5"));
        assert_eq!(value(trouble::SOCKET_ERROR, 104, None).as_deref(), Some("RESET:5"));
        assert_eq!(value(trouble::SOCKET_ERROR, 113, None).as_deref(), Some("EHOSTUNREACH:5"));
        assert_eq!(value(trouble::STALL, trouble::SENDING, None).as_deref(), Some("STALL_100ms:5"));
        let reason = Some("SKB_DROP_REASON_TCP_ZEROWINDOW");
        assert_eq!(value(trouble::DROP, 32, reason).as_deref(), Some("TCP_ZEROWINDOW:5"));
        assert_eq!(value(trouble::DROP, 99, None).as_deref(), Some("REASON_99:5"));
        assert_eq!(value(trouble::DROP, 2, Some("SKB_DROP_REASON_NOT_SPECIFIED")), None);
    }
}
