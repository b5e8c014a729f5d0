//! The rooms: probe families that each turn one kind of kernel event into
//! signals. To add one is to add its folder and its line in [`ROOMS`].
#![forbid(unsafe_code)]

pub mod admission;
pub mod network;
pub mod process;
pub mod record;

use crate::{
    config::Config,
    enrich::Node,
    kernel::programs::Programs,
    otlp::{
        Attributes,
        batch::{Batch, Block},
        logs::{self, LogEvent},
        metrics::Metric,
        spans::{self, Span},
    },
};
use agent_common::Source;
use std::time::{Duration, Instant};

/// Every room there is.
pub const ROOMS: &[&Descriptor] = &[&process::DESCRIPTOR, &network::DESCRIPTOR];

/// What a room is, as data.
pub struct Descriptor {
    /// The same in agent-common, agent-ebpf, agent/src/probes and tests/suite.
    pub name: &'static str,
    /// The topic family of its events.
    pub stream: &'static str,
    /// Its eBPF programs.
    pub object: fn() -> &'static [u8],
    /// What it attaches, in this order.
    pub hooks: &'static [Hook],
    /// The kernel fields its programs read.
    pub sources: &'static [(&'static str, Source)],
    /// What it does where there is no eBPF, as in `looking at /proc`.
    pub without_ebpf: &'static str,
    /// The kernel's enums whose enumerators the room wants to name.
    pub enums: &'static [&'static str],
    /// What its object is told besides, from the configuration.
    pub tuning: fn(&Config) -> Tuning,
    /// Makes it from the configuration.
    pub new: fn(&Config) -> Box<dyn Room>,
}

/// What only this room's object has: constants and sizes.
#[derive(Clone, Debug, Default)]
pub struct Tuning {
    /// Value of the global `OPTIONS`; empty if the object has none.
    pub options: Vec<u8>,
    /// Entries of maps by their names.
    pub map_entries: Vec<(&'static str, u32)>,
    /// Hooks that the configuration has no use for: they are not attached.
    pub unused: Vec<&'static str>,
}

/// One thing in the kernel that a room watches, by the best way that holds.
pub struct Hook {
    /// What it tells: `exec`.
    pub name: &'static str,
    /// Without it the room goes down to /proc.
    pub required: bool,
    /// Best first.
    pub rungs: &'static [Rung],
}

/// A step of the ladder: a way to watch, what is watched, and the program for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rung {
    /// How.
    pub way: Way,
    /// A tracepoint (`sched_process_exec`, a classic one `sched:sched_process_exec`), a
    /// function, or what an iterator goes over.
    pub target: &'static str,
    /// The program in the room's object.
    pub program: &'static str,
    /// The program knows the kernel's objects by their addresses, and not by typed
    /// pointers. Programs of a room that look up what others have written must agree in that.
    pub by_address: bool,
    /// Nothing can be had without the offsets in kernel BTF.
    pub needs_btf: bool,
}

/// The ways to watch, best first. All but the classic tracepoint take kernel BTF: to
/// attach, or to know where the fields are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// A tracepoint with typed arguments (5.5).
    BtfTracepoint,
    /// The beginning of a function of the kernel, with its typed arguments (5.5; a kernel that
    /// lets functions be traced).
    FunctionEntry,
    /// The end of one.
    FunctionExit,
    /// A tracepoint's arguments as they are (4.17).
    RawTracepoint,
    /// A classic tracepoint (4.7); needs tracefs.
    Tracepoint,
    /// The beginning of a function, with the processor's registers (4.1; CONFIG_KPROBES).
    Probe,
    /// A program that goes over all objects of a kind when it is read (5.8).
    Iterator,
}

impl Way {
    /// Every way.
    pub const ALL: [Self; 7] = [
        Self::BtfTracepoint,
        Self::FunctionEntry,
        Self::FunctionExit,
        Self::RawTracepoint,
        Self::Tracepoint,
        Self::Probe,
        Self::Iterator,
    ];

    /// Name in reports, in the configuration and in `leaf.source`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::BtfTracepoint => "tp_btf",
            Self::FunctionEntry => "fentry",
            Self::FunctionExit => "fexit",
            Self::RawTracepoint => "raw_tp",
            Self::Tracepoint => "tracepoint",
            Self::Probe => "kprobe",
            Self::Iterator => "iter",
        }
    }
}

impl Rung {
    /// A step as most are: what has no typed pointers goes by addresses.
    #[must_use]
    pub const fn new(way: Way, target: &'static str, program: &'static str) -> Self {
        let by_address = matches!(way, Way::RawTracepoint | Way::Tracepoint | Way::Probe);
        Self { way, target, program, by_address, needs_btf: true }
    }

    /// The same, by addresses.
    #[must_use]
    pub const fn by_address(self) -> Self {
        Self { by_address: true, ..self }
    }

    /// The same, of some use without kernel BTF.
    #[must_use]
    pub const fn without_btf(self) -> Self {
        Self { needs_btf: false, ..self }
    }

    /// What it is attached to, as a report says it.
    #[must_use]
    pub fn told(&self) -> String {
        match self.way {
            Way::Iterator if self.by_address => format!("{} by address", self.target),
            _ => self.target.to_owned(),
        }
    }

    /// See [`Way::name`].
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.way.name()
    }
}

/// The lowest rung of every room: polling /proc.
pub const PROCFS: &str = "procfs";

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not the size of a record of its kind.
    #[error("a record of {0} bytes")]
    Size(usize),
    /// A discriminant that no record has.
    #[error("a record of unknown kind {0}")]
    Kind(u32),
    /// A number that its field cannot have.
    #[error("{1} as {0}")]
    Value(&'static str, u32),
    /// A length that its field cannot hold.
    #[error("a length of {1} in {0}")]
    Length(&'static str, u32),
}

/// A room at work. It lives on the drain thread.
pub trait Room: Send {
    /// Takes one record from the ring.
    ///
    /// # Errors
    /// [`Malformed`]; then nothing was changed or sent.
    fn record(&mut self, bytes: &[u8], node: &mut Node, out: &mut Output) -> Result<(), Malformed>;

    /// Learns what there was before the room began; the node knows its processes already.
    fn begin(&mut self, _node: &mut Node, _programs: Option<&mut Programs>) {}

    /// When the room has something to do besides its records.
    fn due(&self) -> Option<Instant> {
        None
    }

    /// Does what is due; the programs are there on every rung but /proc's.
    fn tick(&mut self, _now: Instant, _node: &mut Node, _programs: Option<&mut Programs>, _out: &mut Output) {}

    /// Before the programs are detached: reads what only they still hold.
    fn close(&mut self, _node: &mut Node, _programs: &mut Programs, _out: &mut Output) {}

    /// The last call, when the programs are detached and the ring is empty: sends what it still holds.
    fn finish(&mut self, _node: &mut Node, _out: &mut Output) {}

    /// On the /proc rung: looks once, and sends what is new.
    fn poll(&mut self, node: &mut Node, out: &mut Output);

    /// Its metrics now.
    fn metrics(&self) -> Vec<Metric>;
}

/// Where a room puts its signals.
pub struct Output {
    logs: Option<Batch>,
    spans: Option<Batch>,
    now: Instant,
    observed: u64,
}

impl Output {
    /// `None` for a signal that nobody wants.
    #[must_use]
    pub fn new(logs: Option<Batch>, spans: Option<Batch>) -> Self {
        Self { logs, spans, now: Instant::now(), observed: 0 }
    }

    /// Sets the time of what follows: for the age of batches, and Unix ns for `observed`.
    pub fn at(&mut self, now: Instant, observed: u64) {
        (self.now, self.observed) = (now, observed);
    }

    /// Adds a log event.
    #[inline]
    pub fn log(&mut self, event: &LogEvent<'_>, attributes: impl FnOnce(&mut Attributes<'_>)) {
        if let Some(batch) = &mut self.logs {
            let event = LogEvent { observed: self.observed, ..*event };
            batch.push(self.now, |out| logs::write(out, &event, attributes));
        }
    }

    /// Adds a span.
    #[inline]
    pub fn span(&mut self, span: &Span<'_>, attributes: impl FnOnce(&mut Attributes<'_>)) {
        if let Some(batch) = &mut self.spans {
            batch.ledger().attempted(1);
            batch.push(self.now, |out| spans::write(out, span, attributes));
        }
    }

    /// For a room that makes its own events: counts one, and says if it is admitted.
    pub fn admit(&mut self, outcome: Result<(), agent_common::Unsent>) -> bool {
        if let Some(batch) = &self.logs {
            let ledger = batch.ledger();
            ledger.attempted(1);
            match outcome {
                Ok(()) => {}
                Err(agent_common::Unsent::RateLimited) => ledger.rate_limited(1),
                Err(_) => ledger.filtered(1),
            }
        }
        outcome.is_ok()
    }

    /// For an event that the kernel side has let through, before it knew whose it is.
    pub fn filtered(&mut self) {
        if let Some(batch) = &self.logs {
            batch.ledger().filtered(1);
        }
    }

    /// Closes what is full, or older than `max_age`, or all if `max_age` is zero.
    pub fn take_due(&mut self, max_age: Duration, mut send: impl FnMut(Block)) {
        let now = self.now;
        for batch in [&mut self.logs, &mut self.spans].into_iter().flatten() {
            let old = batch.opened().is_some_and(|opened| now.saturating_duration_since(opened) >= max_age);
            if (old || batch.is_full())
                && let Some(block) = batch.take()
            {
                send(block);
            }
        }
    }

    /// When the first record of an open batch came.
    #[must_use]
    pub fn oldest(&self) -> Option<Instant> {
        [&self.logs, &self.spans].into_iter().flatten().filter_map(Batch::opened).min()
    }

    /// Whether a batch has reached its size.
    #[inline]
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.logs.as_ref().is_some_and(Batch::is_full) || self.spans.as_ref().is_some_and(Batch::is_full)
    }
}
