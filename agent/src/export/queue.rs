//! The bounded queue between the drain thread and the exporter.

use crate::otlp::batch::Block;
use std::cell::Cell;
use tokio::sync::mpsc;

/// The drain thread's end.
pub struct Offer {
    sender: mpsc::Sender<Block>,
    /// Batches dropped since the last one that had a place.
    dropped: Cell<u64>,
}

/// A queue of `max_batches`.
#[must_use]
pub fn queue(max_batches: usize) -> (Offer, mpsc::Receiver<Block>) {
    let (sender, receiver) = mpsc::channel(max_batches);
    (Offer { sender, dropped: Cell::new(0) }, receiver)
}

impl Offer {
    /// Queues a batch, or drops it if there is no place: the drain thread never waits.
    pub fn offer(&self, block: Block) {
        match self.sender.try_send(block) {
            Ok(()) => {
                let dropped = self.dropped.take();
                if dropped > 0 {
                    tracing::info!("the export queue has space again; {dropped} batches were dropped, see the ledger");
                }
            }
            // The batch counts itself as it is dropped.
            Err(mpsc::error::TrySendError::Full(block)) => {
                drop(block);
                if self.dropped.replace(self.dropped.get() + 1) == 0 {
                    let places = self.sender.max_capacity();
                    tracing::warn!(
                        "the export queue is full ({places} batches, queue.max_batches): dropping what comes, and counting it as queue_dropped"
                    );
                }
            }
            Err(mpsc::error::TrySendError::Closed(block)) => drop(block),
        }
    }

    /// Queues a batch at the end, when there is time to wait for a place.
    pub fn offer_last(&self, block: Block) {
        // An error is a queue that was closed: its time was over.
        let _ = self.sender.blocking_send(block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{health::ledger::Ledger, otlp::Signal};
    use std::sync::Arc;

    #[test]
    fn what_has_no_place_is_counted_as_dropped() {
        let ledger = Arc::new(Ledger::new("test"));
        let block = || Block::new(Signal::Logs, bytes::Bytes::new(), 10, Arc::clone(&ledger));
        ledger.attempted(40);
        let (offer, mut receiver) = queue(2);
        for _ in 0..3 {
            offer.offer(block());
        }
        assert_eq!((ledger.read().queue_dropped, ledger.read().in_flight()), (10, 30));
        receiver.try_recv().expect("queued").settle(4);
        assert_eq!((ledger.read().delivered, ledger.read().export_rejected), (6, 4));
        drop(receiver);
        offer.offer(block());
        let reading = ledger.read();
        assert_eq!((reading.queue_dropped, reading.delivered, reading.in_flight()), (30, 6, 0));
    }
}
