//! Requests that go side by side, and yet keep the order of what a room sends:
//! one at a time for each signal of each room. What comes meanwhile is gathered
//! for the next one, so that a slow answer makes requests larger and not fewer.

use super::otlp::Otlp;
use crate::otlp::batch::{Block, Source};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use std::collections::VecDeque;
use tokio::sync::mpsc;

/// Batches that are held beside those on their way; the others wait in the queue.
const GATHERED: usize = 32;
/// Largest request, bytes: a collector takes 4 MiB by default.
const MAX_REQUEST: usize = 3 << 20;

/// The way of one signal of one room.
struct Lane {
    source: Source,
    waiting: VecDeque<Block>,
    is_busy: bool,
}

impl Lane {
    /// What the next request holds, if there is anything to send and the last one was answered.
    fn next(&mut self) -> Option<Vec<Block>> {
        if self.is_busy {
            return None;
        }
        let mut bytes = 0;
        let mut blocks = Vec::new();
        while let Some(block) = self.waiting.front() {
            bytes += block.bytes.len();
            if !blocks.is_empty() && bytes > MAX_REQUEST {
                break;
            }
            blocks.extend(self.waiting.pop_front());
        }
        self.is_busy = !blocks.is_empty();
        self.is_busy.then_some(blocks)
    }
}

/// Sends what comes until the queue ends. Dropped in the middle, it drops the
/// batches that it holds, which count themselves as lost.
pub async fn send(otlp: &Otlp, mut queue: mpsc::Receiver<Block>) {
    let mut lanes: Vec<Lane> = Vec::new();
    let mut requests = FuturesUnordered::new();
    let mut is_open = true;
    loop {
        for (at, lane) in lanes.iter_mut().enumerate() {
            if let Some(blocks) = lane.next() {
                let waiting = queue.len() + lane.waiting.len();
                requests.push(async move {
                    otlp.export(blocks, waiting).await;
                    at
                });
            }
        }
        if !is_open && requests.is_empty() {
            return;
        }
        // Counted when the requests have taken theirs: what they free is filled again at once.
        let held: usize = lanes.iter().map(|lane| lane.waiting.len()).sum();
        tokio::select! {
            Some(at) = requests.next() => lanes[at].is_busy = false,
            block = queue.recv(), if is_open && held < GATHERED => match block {
                Some(block) => gather(&mut lanes, block),
                None => is_open = false,
            },
        }
    }
}

fn gather(lanes: &mut Vec<Lane>, block: Block) {
    let source = block.source();
    match lanes.iter_mut().find(|lane| lane.source == source) {
        Some(lane) => lane.waiting.push_back(block),
        None => lanes.push(Lane { source, waiting: VecDeque::from([block]), is_busy: false }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{health::ledger::Ledger, otlp::Signal};
    use std::sync::Arc;

    #[test]
    fn what_waits_goes_in_one_request_in_its_order_up_to_the_size_that_a_collector_takes() {
        let ledger = Arc::new(Ledger::new("test"));
        let block =
            |signal, bytes: usize, records| Block::new(signal, vec![0; bytes].into(), records, Arc::clone(&ledger));
        let mut lanes = Vec::new();
        for (bytes, records) in [(1 << 20, 1), (1 << 20, 2), (1 << 20, 3), (1, 4), (4 << 20, 5)] {
            gather(&mut lanes, block(Signal::Logs, bytes, records));
        }
        gather(&mut lanes, block(Signal::Traces, 1, 6));
        assert_eq!(lanes.len(), 2);
        let records = |blocks: Option<Vec<Block>>| {
            blocks.map(|blocks| blocks.iter().map(Block::records).collect::<Vec<_>>()).unwrap_or_default()
        };
        assert_eq!(records(lanes[0].next()), [1, 2, 3]);
        assert!(lanes[0].next().is_none(), "no second one on its way");
        assert_eq!(records(lanes[1].next()), [6]);
        for expected in [[4], [5]] {
            lanes[0].is_busy = false;
            assert_eq!(records(lanes[0].next()), expected);
        }
        lanes[0].is_busy = false;
        assert!(lanes[0].next().is_none());
    }
}
