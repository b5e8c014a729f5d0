//! UDP flows: from the kernel's sums to what is new, told when a flow falls
//! silent, and at an interval while it does not.

use agent_common::network::{Flow, FlowKey};
use rustc_hash::{FxHashMap, FxHashSet};
use std::time::Duration;

/// A flow without a packet for so long has ended.
const SILENCE: Duration = Duration::from_secs(10);

/// What was told of the flows.
#[derive(Debug, Default)]
pub struct Flows {
    told: FxHashMap<FlowKey, (Flow, u64)>,
}

/// A flow with what is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct News {
    /// Who and whom.
    pub key: FlowKey,
    /// Sums since it was last told.
    pub flow: Flow,
    /// Bytes both ways that belong to the last interval, as if the flow had been even.
    pub recent_bytes: u64,
    /// It has fallen silent.
    pub has_ended: bool,
    /// The process has spoken first, as far as was seen, and is no server at this port.
    pub is_client: bool,
}

impl Flows {
    /// What is to be told of all entries of the kernel's map; `now_ns` is the boot
    /// clock, `interval` the time between two reports of a flow. `last`: tell all now.
    pub fn news(&mut self, entries: &[(FlowKey, Flow)], now_ns: u64, interval: Duration, last: bool) -> Vec<News> {
        let ns = |duration: Duration| duration.as_nanos() as u64;
        // A socket that takes packets from everybody is a server's, also towards those that it answers.
        let servers: FxHashSet<(u32, u16)> = entries
            .iter()
            .filter(|(key, flow)| key.ends.remote_port == 0 && flow.sent_first == 0)
            .map(|(key, _)| (key.pid, key.ends.local_port))
            .collect();
        let mut told = FxHashMap::default();
        let mut news = Vec::new();
        for (key, flow) in entries {
            // An entry that was removed and made again begins later.
            let before = self.told.get(key).filter(|(told, _)| told.begin_ns == flow.begin_ns).copied();
            let (sums, told_at) = before.unwrap_or((Flow::default(), flow.begin_ns));
            let has_ended = last || now_ns.saturating_sub(flow.last_ns) >= ns(SILENCE);
            if !has_ended && now_ns.saturating_sub(told_at) < ns(interval) {
                told.insert(*key, (sums, told_at));
                continue;
            }
            let new = Flow {
                sent_bytes: flow.sent_bytes.saturating_sub(sums.sent_bytes),
                received_bytes: flow.received_bytes.saturating_sub(sums.received_bytes),
                sent_packets: flow.sent_packets.saturating_sub(sums.sent_packets),
                received_packets: flow.received_packets.saturating_sub(sums.received_packets),
                ..*flow
            };
            if has_ended || new.sent_packets + new.received_packets > 0 {
                let is_client = flow.sent_first != 0 && !servers.contains(&(key.pid, key.ends.local_port));
                let covered = u128::from(now_ns.saturating_sub(told_at)).max(interval.as_nanos()).max(1);
                let bytes = u128::from(new.sent_bytes + new.received_bytes);
                let recent_bytes = (bytes * interval.as_nanos() / covered) as u64;
                news.push(News { key: *key, flow: new, recent_bytes, has_ended, is_client });
            }
            if !has_ended {
                told.insert(*key, (*flow, now_ns));
            }
        }
        self.told = told;
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const INTERVAL: Duration = Duration::from_secs(30);

    fn flow(packets: u64, last: u64) -> (FlowKey, Flow) {
        let flow = Flow {
            begin_ns: SECOND,
            last_ns: last * SECOND,
            sent_packets: packets,
            sent_bytes: 100 * packets,
            ..Flow::default()
        };
        (FlowKey { pid: 7, ..FlowKey::default() }, flow)
    }

    #[test]
    fn a_flow_that_falls_silent_is_told_once_as_ended() {
        let mut flows = Flows::default();
        assert!(flows.news(&[flow(3, 2)], 5 * SECOND, INTERVAL, false).is_empty());
        let news = flows.news(&[flow(3, 2)], 12 * SECOND, INTERVAL, false);
        assert_eq!((news.len(), news[0].has_ended, news[0].flow.sent_bytes), (1, true, 300));
    }

    #[test]
    fn a_long_flow_is_told_at_each_interval_with_what_is_new() {
        let mut flows = Flows::default();
        let mut told = Vec::new();
        for second in 1..=70 {
            for news in flows.news(&[flow(second, second)], second * SECOND, INTERVAL, false) {
                assert!(!news.has_ended);
                told.push(news.flow.sent_packets);
            }
        }
        assert_eq!(told, [31, 30]);
        let news = flows.news(&[flow(70, 70)], 70 * SECOND, INTERVAL, true);
        assert_eq!((news[0].flow.sent_packets, news[0].has_ended), (9, true));
    }

    #[test]
    fn what_moved_before_the_last_interval_is_not_recent() {
        let recent = |now| Flows::default().news(&[flow(60, 60)], now * SECOND, INTERVAL, true)[0].recent_bytes;
        // All 6000 bytes in a minute, of which the interval is a half.
        assert_eq!(recent(61), 3000);
        assert_eq!(recent(21), 6000);
    }

    #[test]
    fn who_answers_from_a_port_that_everybody_may_ask_is_a_server() {
        let (mut key, mut answers) = flow(1, 1);
        (key.ends.local_port, key.ends.remote_port, answers.sent_first) = (53, 4000, 1);
        let mut questions = (key, Flow { sent_first: 0, ..answers });
        questions.0.ends.remote_port = 0;
        let news = Flows::default().news(&[(key, answers)], 2 * SECOND, INTERVAL, true);
        assert!(news[0].is_client);
        let news = Flows::default().news(&[(key, answers), questions], 2 * SECOND, INTERVAL, true);
        assert!(news.iter().all(|news| !news.is_client));
    }

    #[test]
    fn a_flow_that_began_anew_is_told_from_its_beginning() {
        let mut flows = Flows::default();
        flows.news(&[flow(100, 31)], 31 * SECOND, INTERVAL, false);
        let (key, mut again) = flow(5, 60);
        again.begin_ns = 50 * SECOND;
        let news = flows.news(&[(key, again)], 80 * SECOND, INTERVAL, false);
        assert_eq!(news[0].flow.sent_packets, 5);
    }
}
