//! The agent as a whole: rooms attached, the drain thread, the exporter.

use crate::{
    config::{self, Config, Period},
    drain::{Drain, Ledgers, Origin, Periods, Running},
    enrich::{Node, host},
    export::{ExportError, Exporter, queue},
    health::ledger::{self, Reading},
    kernel::{
        attach::{self, RoomReport},
        load::Kernel,
        privileges::{self, Work},
        refusal::Refusal,
        ring::{Stop, Waiter},
        support,
    },
    otlp::{
        Signal,
        batch::{Batch, Block},
        resource::{Resource, Scope},
    },
    probes::{Descriptor, Output, PROCFS, ROOMS},
};
use std::{
    future::Future,
    path::PathBuf,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::sync::mpsc;

/// Oldest record in a batch for the console: a person waits for it.
const CONSOLE_AGE: Duration = Duration::from_millis(100);

/// A running agent. Dropped without [`Agent::run`], it stops and loses what it holds.
pub struct Agent {
    reports: Vec<RoomReport>,
    ledgers: Vec<Ledgers>,
    stop: Stop,
    drain: JoinHandle<()>,
    exporter: Exporter,
    queue: mpsc::Receiver<Block>,
    flush_timeout: Duration,
}

/// Why the agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No room has anything to watch.
    #[error("nothing could be attached, and /proc cannot be read: {0}")]
    NothingAttached(std::io::Error),
    /// See [`ExportError`].
    #[error(transparent)]
    Export(#[from] ExportError),
    /// No thread or descriptor.
    #[error("failed to start the drain thread: {0}")]
    Thread(std::io::Error),
}

/// How a run ended.
#[derive(Debug)]
pub struct Ending {
    /// What became of every record.
    pub readings: Vec<Reading>,
    /// Why the exporter stopped, if it did by itself.
    pub export: Result<(), ExportError>,
    /// The drain thread panicked: what it held is lost.
    pub drain_failed: bool,
}

impl Ending {
    /// The ledger as a table.
    #[must_use]
    pub fn ledger(&self) -> String {
        ledger::table(&self.readings)
    }
}

impl Agent {
    /// Attaches the rooms and begins to watch. A room that finds no eBPF polls /proc.
    ///
    /// # Errors
    /// [`StartError`]
    pub fn start(config: &Config) -> Result<Self, StartError> {
        Self::start_then(config, |_| {})
    }

    /// The same for a process that is nothing but this agent: once attached, the calling thread and all threads that
    /// it makes from then on keep only what the rooms need to go on ([`privileges::confine`]). There is no way back.
    ///
    /// # Errors
    /// [`StartError`]; what cannot be given up is a warning in the log.
    pub fn start_confined(config: &Config) -> Result<Self, StartError> {
        Self::start_then(config, |reports| {
            let work = Work::of(reports);
            privileges::confine(&work).announce(&work);
        })
    }

    /// `then` runs when the last thing is done that takes privilege, and before there is another thread.
    fn start_then(config: &Config, then: impl FnOnce(&[RoomReport])) -> Result<Self, StartError> {
        let exporter = Exporter::new(config)?;
        let waiter = Waiter::new().map_err(|error| StartError::Thread(error.into()))?;
        let stop = waiter.stop();
        let resource = resource(config);
        let all_signals = exporter.takes_all_signals();
        let rooms: Vec<&'static Descriptor> =
            ROOMS.iter().copied().filter(|room| config.probes.iter().any(|name| name == room.name)).collect();
        let kernel = Kernel::read(&rooms);
        let (mut reports, mut ledgers, mut running) = (Vec::new(), Vec::new(), Vec::new());
        for &room in &rooms {
            let settings = config.room(room.name);
            let (report, attached) = attach::attach(&kernel, room, &settings, &(room.tuning)(config));
            let way = match attached {
                Some(attached) => {
                    waiter.add(&attached.ring).map_err(|error| StartError::Thread(error.into()))?;
                    Origin::Ring(Box::new(attached))
                }
                None => {
                    // A folder of this name may be anything.
                    std::fs::metadata("/proc/self/stat").map_err(StartError::NothingAttached)?;
                    Origin::Procfs { every: settings.poll_interval.0, next: Instant::now() }
                }
            };
            let scope = Scope { name: format!("leaf.{}", room.name), stream: room.stream, source: report.source };
            let room_ledgers = Ledgers::new(room.name);
            let batch = |signal, ledger: &Arc<_>| {
                Batch::new(signal, &resource, &scope, config.batch.max_bytes, Arc::clone(ledger))
            };
            let out = Output::new(
                Some(batch(Signal::Logs, &room_ledgers.events)),
                all_signals.then(|| batch(Signal::Traces, &room_ledgers.spans)),
            );
            reports.push(report);
            ledgers.push(room_ledgers.clone());
            running.push(Running { name: room.name, room: (room.new)(config), way, out, scope, ledgers: room_ledgers });
        }
        // Nothing below needs the kernel's type information, which is large.
        drop(kernel);
        crate::kernel::give_back_memory();
        let (offer, queue) = queue::queue(config.queue.max_batches);
        let age = config.batch.max_age.0;
        let periods = Periods {
            batch: if all_signals { age } else { age.min(CONSOLE_AGE) },
            metrics: all_signals.then_some(config.metrics.interval.0),
        };
        let polls = running.iter().all(|running| matches!(running.way, Origin::Procfs { .. }));
        let mut node = node(config, polls);
        for running in &mut running {
            running.room.begin(&mut node, running.way.programs());
        }
        // Said only now: whatever happens from here on is seen, on /proc too.
        for (room, report) in rooms.iter().zip(&reports) {
            announce(report, &config.room(room.name), room.without_ebpf);
        }
        if node.proc.is_none() {
            tracing::warn!(
                "this pid namespace is not the host's: /proc does not know the processes of events; in Kubernetes set hostPID: true"
            );
        }
        then(&reports);
        let drain = Drain::new(running, node, resource, offer, waiter, periods);
        let drain = std::thread::Builder::new()
            .name("leaf-drain".into())
            .spawn(move || drain.run())
            .map_err(StartError::Thread)?;
        Ok(Self { reports, ledgers, stop, drain, exporter, queue, flush_timeout: config.queue.flush_timeout.0 })
    }

    /// Which way each room took.
    #[must_use]
    pub fn reports(&self) -> &[RoomReport] {
        &self.reports
    }

    /// Exports until `end` or until nothing can be exported any more; then
    /// detaches, sends what there is within the flush timeout, and accounts.
    pub async fn run(self, end: impl Future<Output = ()>) -> Ending {
        let Self { stop, drain, exporter, queue, flush_timeout, ledgers, .. } = self;
        let export = {
            let mut work = std::pin::pin!(exporter.work(queue));
            tokio::select! {
                export = &mut work => export,
                () = end => {
                    stop.now();
                    match tokio::time::timeout(flush_timeout, &mut work).await {
                        Ok(export) => export,
                        Err(_) => {
                            let period = Period(flush_timeout);
                            tracing::warn!("not all was sent within {period} (queue.flush_timeout); the rest is dropped");
                            Ok(())
                        }
                    }
                }
            }
            // Here the queue ends, and with it the wait of a drain thread that found it full.
        };
        stop.now();
        let drain_failed = drain.join().is_err();
        Ending { readings: ledgers.iter().flat_map(Ledgers::read).collect(), export, drain_failed }
    }
}

/// Says how a room's events come about, and what was refused on the way.
fn announce(report: &RoomReport, settings: &config::Room, way: &str) {
    let room = report.room;
    for refusal in report.hooks.iter().flat_map(|hook| &hook.refused).chain(&report.refused) {
        let Refusal { rung, target, cause, way_out } = refusal;
        tracing::debug!("{room}: {rung} {target} is refused: {cause}; {way_out}");
    }
    for hook in &report.hooks {
        if let (Some(rung), Some(target)) = (hook.rung, &hook.target) {
            tracing::debug!(target: "audit", "attached {room} {} by {rung} to {target}", hook.hook);
        }
    }
    if report.source == PROCFS {
        let cause = report.refused.iter().chain(report.hooks.iter().flat_map(|hook| &hook.refused)).next();
        let cause = cause.map_or_else(String::new, |refusal| format!(" ({}; {})", refusal.cause, refusal.way_out));
        let period = settings.poll_interval;
        tracing::warn!(
            "{room}: no eBPF{cause}; {way} every {period} instead, what lives shorter than that is not seen"
        );
    } else {
        tracing::info!("{room}: watching by {}", report.source);
        for hook in report.hooks.iter().filter(|hook| hook.rung.is_none()) {
            let because = hook.refused.last().map(|refusal| format!(": {}; {}", refusal.cause, refusal.way_out));
            tracing::warn!("{room}: nothing tells of {}{}", hook.hook, because.unwrap_or_default());
        }
    }
}

fn resource(config: &Config) -> Resource {
    let mut resource = host::resource(&config.service_name);
    for (key, value) in &config.resource_attributes {
        resource.set(key, value);
    }
    resource
}

/// What is known of this machine before the first event.
fn node(config: &Config, polls: bool) -> Node {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    // By polling, events are of the processes that /proc speaks of; from the kernel, of the host's.
    let proc = (polls || support::in_host_pid_namespace()).then(|| PathBuf::from("/proc"));
    let mut node = Node::new(proc, &read("/proc/sys/kernel/random/boot_id"));
    node.cgroups.seed(&read("/proc/self/mounts"), &read("/proc/self/cgroup"));
    if let Some(proc) = &node.proc
        && let Err(error) = node.processes.seed(proc, &mut config.privacy.redactor(), &node.clock)
    {
        tracing::warn!("failed to read the running processes from /proc: {error}; they are named as their events come");
    }
    node
}
