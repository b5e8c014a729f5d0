//! The drain thread: it empties all rings, decodes, enriches and encodes, and
//! hands closed batches to the export side.
//!
//! While records come it looks every few milliseconds and the programs wake
//! nobody. After a few looks in vain it asks for a wakeup and sleeps.

use crate::{
    enrich::{Node, clock::Clock},
    export::queue::Offer,
    health::ledger::{Ledger, Reading},
    kernel::{
        attach::Attached,
        programs::Programs,
        ring::{Ring, Waiter, Woken},
    },
    otlp::{
        Signal,
        batch::Block,
        metrics::{self, Data, Metric},
        resource::{Resource, Scope},
    },
    probes::{Output, Room},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Between two looks while records come.
const LOOK: Duration = Duration::from_millis(5);
/// Looks in vain before it asks for a wakeup.
const PATIENCE: u32 = 4;
/// Between two readings of clocks and ledgers, and the longest sleep.
const TICK: Duration = Duration::from_secs(1);
/// Records of one ring in a row, before another has its turn.
const TURN: usize = 8192;
/// Longest wait for programs that still run after they were detached.
const LAST_PROGRAMS: Duration = Duration::from_millis(100);

/// How a room's events come about.
pub enum Origin {
    /// From its programs.
    Ring(Box<Attached>),
    /// By looking at /proc.
    Procfs {
        /// Time between two looks.
        every: Duration,
        /// When to look again.
        next: Instant,
    },
}

impl Origin {
    /// The room's programs in the kernel, if it has any.
    pub fn programs(&mut self) -> Option<&mut Programs> {
        match self {
            Origin::Ring(attached) => attached.programs(),
            Origin::Procfs { .. } => None,
        }
    }
}

/// The ledgers of a room, one per signal.
#[derive(Clone)]
pub struct Ledgers {
    /// Log records.
    pub events: Arc<Ledger>,
    /// Spans.
    pub spans: Arc<Ledger>,
    /// Metric data points.
    pub points: Arc<Ledger>,
}

impl Ledgers {
    /// Of a room of this name.
    pub fn new(room: &str) -> Self {
        let ledger = |what| Arc::new(Ledger::new(format!("{room} {what}")));
        Self { events: ledger("events"), spans: ledger("spans"), points: ledger("points") }
    }

    /// Those that have counted anything; that of the events always.
    pub fn read(&self) -> Vec<Reading> {
        let (events, others) = (self.events.read(), [self.spans.read(), self.points.read()]);
        std::iter::once(events).chain(others.into_iter().filter(|reading| reading.attempted > 0)).collect()
    }
}

/// A room with all that it needs to run.
pub struct Running {
    /// Name of the room.
    pub name: &'static str,
    /// The room.
    pub room: Box<dyn Room>,
    /// Where its events come from.
    pub way: Origin,
    /// Where its signals go.
    pub out: Output,
    /// Who it is.
    pub scope: Scope,
    /// What became of its signals.
    pub ledgers: Ledgers,
}

/// When things are due.
#[derive(Clone, Copy)]
pub struct Periods {
    /// Age of a batch.
    pub batch: Duration,
    /// Between two exports of metrics; `None` if nobody wants them.
    pub metrics: Option<Duration>,
}

/// See the module.
pub struct Drain {
    rooms: Vec<Running>,
    node: Node,
    resource: Resource,
    queue: Offer,
    waiter: Waiter,
    periods: Periods,
    started: u64,
    next_tick: Instant,
    next_metrics: Option<Instant>,
}

impl Drain {
    /// A drain that has done nothing yet.
    pub fn new(
        rooms: Vec<Running>,
        node: Node,
        resource: Resource,
        queue: Offer,
        waiter: Waiter,
        periods: Periods,
    ) -> Self {
        let now = Instant::now();
        let started = node.clock.unix(Clock::boot_now());
        let next_metrics = periods.metrics.map(|period| now + period);
        Self { rooms, node, resource, queue, waiter, periods, started, next_tick: now, next_metrics }
    }

    /// Works until the order to stop; then detaches, and sends all that there is.
    pub fn run(mut self) {
        let mut vain = 0;
        loop {
            let now = Instant::now();
            let (taken, more) = self.look(now);
            self.housekeeping(now);
            vain = if taken > 0 { 0 } else { u32::saturating_add(vain, 1) };
            if vain == PATIENCE {
                self.rings().for_each(Ring::ask_for_wakeup);
            }
            // One more short look after asking: a program that had not seen the
            // question yet is done by then.
            let timeout = match vain {
                0 if more => Duration::ZERO,
                ..=PATIENCE => LOOK,
                _ => TICK,
            };
            match self.waiter.wait(timeout.min(self.until_due(Instant::now()))) {
                Woken::Stop => break,
                // The one who wakes has taken our question back: it must be asked again.
                Woken::Record => vain = 0,
                Woken::Nothing => {}
            }
        }
        self.finish();
    }

    /// Empties the rings and polls what is due: records taken, and whether there may be more.
    fn look(&mut self, now: Instant) -> (usize, bool) {
        let observed = self.node.clock.unix(Clock::boot_now());
        let (mut taken, mut more) = (0, false);
        for running in &mut self.rooms {
            running.out.at(now, observed);
            let records = running.look(now, &mut self.node, &self.queue);
            taken += records;
            more |= records == TURN;
            running.tick(now, &mut self.node);
            running.out.take_due(self.periods.batch, |block| self.queue.offer(block));
        }
        (taken, more)
    }

    fn housekeeping(&mut self, now: Instant) {
        if now >= self.next_tick {
            self.next_tick = now + TICK;
            self.node.clock.measure();
            self.rooms.iter_mut().for_each(Running::read_kernel);
            if let Some(proc) = &self.node.proc {
                self.node.processes.forget_gone(proc);
            }
        }
        if let (Some(next), Some(period)) = (self.next_metrics, self.periods.metrics)
            && now >= next
        {
            self.next_metrics = Some(now + period);
            for block in self.metrics() {
                self.queue.offer(block);
            }
        }
    }

    /// How long nothing needs to be done but for records.
    fn until_due(&self, now: Instant) -> Duration {
        let rooms = self.rooms.iter().flat_map(|running| {
            let batch = running.out.oldest().map(|opened| opened + self.periods.batch);
            let poll = match &running.way {
                Origin::Procfs { next, .. } => Some(*next),
                Origin::Ring(_) => None,
            };
            [batch, poll, running.room.due()]
        });
        let due = rooms.chain([self.next_metrics]).flatten().min();
        due.map_or(TICK, |due| due.saturating_duration_since(now))
    }

    fn rings(&mut self) -> impl Iterator<Item = &mut Ring> {
        self.rooms.iter_mut().filter_map(|running| match &mut running.way {
            Origin::Ring(attached) => Some(&mut attached.ring),
            Origin::Procfs { .. } => None,
        })
    }

    /// The metrics of each room as a request.
    fn metrics(&mut self) -> Vec<Block> {
        let now = self.node.clock.unix(Clock::boot_now());
        self.rooms
            .iter_mut()
            .map(|running| {
                running.read_kernel();
                let mut metrics = running.room.metrics();
                metrics.push(events_metric(&running.ledgers.events.read()));
                metrics.extend(running.notes_lost().map(notes_metric));
                let (bytes, points) = metrics::encode(&self.resource, &running.scope, metrics, self.started, now);
                running.ledgers.points.attempted(points);
                Block::new(Signal::Metrics, bytes.into(), points, Arc::clone(&running.ledgers.points))
            })
            .collect()
    }

    fn finish(&mut self) {
        self.node.clock.measure();
        let now = Instant::now();
        let observed = self.node.clock.unix(Clock::boot_now());
        for running in &mut self.rooms {
            running.out.at(now, observed);
            if let Origin::Ring(attached) = &mut running.way {
                if let Some(programs) = attached.programs() {
                    running.room.close(&mut self.node, programs, &mut running.out);
                }
                attached.detach();
            }
            let deadline = now + LAST_PROGRAMS;
            while running.look(now, &mut self.node, &self.queue) > 0
                || (running.awaits_more() && Instant::now() < deadline)
            {}
            running.room.finish(&mut self.node, &mut running.out);
            running.read_kernel();
            running.out.take_due(Duration::ZERO, |block| self.queue.offer_last(block));
        }
        if self.periods.metrics.is_some() {
            for block in self.metrics() {
                self.queue.offer_last(block);
            }
        }
    }
}

impl Running {
    /// Takes at most [`TURN`] records.
    fn look(&mut self, now: Instant, node: &mut Node, queue: &Offer) -> usize {
        match &mut self.way {
            Origin::Ring(attached) => {
                for taken in 0..TURN {
                    let there = attached.ring.next(|record| {
                        if let Err(malformed) = self.room.record(record, node, &mut self.out) {
                            self.ledgers.events.malformed(1);
                            tracing::debug!("{}: skipped {malformed} in the ring", self.scope.name);
                        }
                    });
                    if !there {
                        return taken;
                    }
                    if self.out.is_full() {
                        self.out.take_due(Duration::MAX, |block| queue.offer(block));
                    }
                }
                TURN
            }
            Origin::Procfs { every, next } => {
                if now >= *next {
                    *next = now + *every;
                    self.room.poll(node, &mut self.out);
                }
                0
            }
        }
    }

    /// What the room has to do besides its records.
    fn tick(&mut self, now: Instant, node: &mut Node) {
        if self.room.due().is_some_and(|due| due <= now) {
            let programs = self.way.programs();
            self.room.tick(now, node, programs, &mut self.out);
        }
    }

    /// Whether a program has sent what has not been taken.
    fn awaits_more(&self) -> bool {
        match &self.way {
            Origin::Ring(attached) => {
                let ledger = attached.ring.ledger();
                // A program counts after it has sent: taken may be ahead, too.
                ledger.sent + ledger.notes != attached.ring.taken()
            }
            Origin::Procfs { .. } => false,
        }
    }

    /// Records that are no events and found no space in the ring.
    fn notes_lost(&self) -> Option<u64> {
        match &self.way {
            Origin::Ring(attached) => Some(attached.ring.ledger().notes_lost),
            Origin::Procfs { .. } => None,
        }
    }

    fn read_kernel(&mut self) {
        if let Origin::Ring(attached) = &self.way {
            let (before, now) = (self.ledgers.events.read().ring_full, attached.ring.ledger());
            if before == 0 && now.ring_full > 0 {
                tracing::warn!(
                    "{room}: its ring is full, {} events found no space: set rooms.{room}.ring_bytes higher; this is told once, the ledger counts on",
                    now.ring_full,
                    room = self.name,
                );
            }
            self.ledgers.events.set_kernel(&now);
        }
    }
}

/// The ledger of a room's events as a metric.
fn events_metric(events: &Reading) -> Metric {
    let outcomes = events.outcomes().into_iter().filter(|(outcome, _)| *outcome != "in_flight");
    Metric {
        name: "leaf.events",
        unit: "{event}",
        description: "Events that the room has seen, by what became of them",
        data: Data::Counter(
            outcomes.map(|(outcome, events)| (vec![("leaf.outcome", outcome.to_owned())], events)).collect(),
        ),
    }
}

fn notes_metric(lost: u64) -> Metric {
    Metric::count(
        "leaf.notes.lost",
        "{record}",
        "Records that are no events, as the path of a new control group, and found no space in the ring",
        lost,
    )
}
