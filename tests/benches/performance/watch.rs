//! The same work while the agent watches, while a peer does, and while nobody does.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leaf_tests::agent::AgentProcess;
use leaf_tests::daemon::Daemon;
use leaf_tests::ledger::Line;
use leaf_tests::peer;
use leaf_tests::place::Folder;
use rustix::process::Signal;

use crate::report::median;
use crate::sink::Sink;

/// The watchers that are no peer.
const OURS: &str = "leaf";
const NOBODY: &str = "nobody";
const PATIENCE: Duration = Duration::from_secs(30);
/// For a peer to attach, and for the machine to come to rest.
pub const SETTLE: Duration = Duration::from_secs(2);

/// An agent that sends to `sink`.
pub fn agent(sink: &Sink, probes: &str) -> Result<AgentProcess> {
    agent_with(sink, probes, &[])
}

/// The same with more in its environment.
pub fn agent_with(sink: &Sink, probes: &str, more: &[(&str, &str)]) -> Result<AgentProcess> {
    let endpoint = [("OTEL_EXPORTER_OTLP_ENDPOINT", sink.endpoint.as_str())];
    let env = [&endpoint, more].concat();
    let mut agent = AgentProcess::start(&["run", "--probes", probes], &env)?;
    agent.wait_for_stderr("watching by", PATIENCE)?;
    Ok(agent)
}

/// How fast the work was done.
#[derive(Clone, Copy)]
pub struct Work {
    /// Things a second.
    pub rate: f64,
    /// 99 of 100 of them took less; NaN if that is not known. Any unit.
    pub p99: f64,
}

impl Work {
    /// Work of which only the rate is known.
    pub fn at(rate: f64) -> Self {
        Self { rate, p99: f64::NAN }
    }
}

/// Who is to be compared, and at what.
pub struct Contest<'a> {
    /// Programs and their arguments; those that are not there take no part.
    pub peers: &'a [(&'a str, &'a [&'a str])],
    /// Rooms of the agent.
    pub probes: &'a str,
    /// Measurements of each.
    pub rounds: usize,
    /// Does the work.
    pub work: &'a dyn Fn() -> Result<Work>,
    /// Things that one call of `work` does, or for a rate over a fixed time, the seconds: CPU time is per thing.
    pub each: f64,
}

/// Medians of all rounds, the agent's first, then the peers', then nobody's.
pub struct Outcome<'a> {
    /// The work while nobody watches.
    pub alone: Work,
    /// What is left of it, each round compared with the rates before and after.
    pub kept: Vec<(&'a str, f64)>,
    /// By how much P99 has grown, in the same way.
    pub p99: Vec<(&'a str, f64)>,
    /// Signals of the agent that were not delivered, in all rounds.
    pub undelivered: u64,
    /// µs of the watcher's CPU time for each thing done.
    pub cpu: Vec<(&'a str, f64)>,
    /// RSS after the work, MB.
    pub memory: Vec<(&'a str, f64)>,
}

/// What one watcher cost, by round.
#[derive(Default)]
struct Costs {
    kept: Vec<f64>,
    p99: Vec<f64>,
    undelivered: u64,
    memory: Vec<f64>,
    cpu: Vec<f64>,
}

/// Who watches.
enum Watcher {
    Agent(Box<AgentProcess>),
    Peer(Daemon),
}

impl Watcher {
    fn pid(&self) -> u32 {
        match self {
            Self::Agent(agent) => agent.pid(),
            Self::Peer(peer) => peer.pid(),
        }
    }

    /// Returns how many signals were not delivered, as far as the watcher counts them.
    fn stop(self, probes: &str) -> Result<u64> {
        match self {
            Self::Agent(agent) => {
                let finished = agent.terminate(PATIENCE)?;
                ensure!(finished.status.success(), "the agent failed: {}", finished.stderr);
                let line = |what| Ok(Line::of(&finished.stderr, &format!("{probes} {what}"))?.undelivered());
                ["events", "spans"].map(line).into_iter().sum()
            }
            Self::Peer(mut peer) => {
                peer.signal(Signal::INT)?;
                peer.wait(PATIENCE)?;
                Ok(0)
            }
        }
    }
}

impl<'a> Contest<'a> {
    /// Runs all rounds.
    pub fn run(&self) -> Result<Outcome<'a>> {
        let sink = Sink::forgetful()?;
        let peers = self.peers.iter().map(|(name, _)| *name).filter(|name| peer::available(name));
        let names: Vec<&'a str> = std::iter::once(OURS).chain(peers).chain([NOBODY]).collect();
        let mut costs: Vec<Costs> = names.iter().map(|_| Costs::default()).collect();
        let mut alone = Vec::new();
        let mut before = (self.work)()?;
        for _ in 0..self.rounds {
            for (name, costs) in names.iter().zip(&mut costs) {
                let watched = self.watched(name, &sink, costs)?;
                let after = (self.work)()?;
                costs.kept.push(watched.rate / f64::midpoint(before.rate, after.rate));
                costs.p99.push(watched.p99 / f64::midpoint(before.p99, after.p99));
                alone.push(after);
                before = after;
            }
        }
        let median_of = |of: fn(&Costs) -> &Vec<f64>| {
            let medians = names.iter().zip(costs.iter().map(|costs| median(of(costs).clone())));
            medians.map(|(name, median)| (*name, median)).filter(|(_, median)| !median.is_nan()).collect()
        };
        Ok(Outcome {
            alone: Work {
                rate: median(alone.iter().map(|work| work.rate).collect()),
                p99: median(alone.iter().map(|work| work.p99).collect()),
            },
            kept: median_of(|costs| &costs.kept),
            p99: median_of(|costs| &costs.p99),
            undelivered: costs[0].undelivered,
            cpu: median_of(|costs| &costs.cpu),
            memory: median_of(|costs| &costs.memory),
        })
    }

    /// The work while `name` watches.
    fn watched(&self, name: &str, sink: &Sink, costs: &mut Costs) -> Result<Work> {
        if name == NOBODY {
            std::thread::sleep(SETTLE);
            return (self.work)();
        }
        let folder = Folder::new("peer")?;
        let watcher = self.start(name, sink, &folder)?;
        std::thread::sleep(SETTLE);
        let cpu_before = cpu(watcher.pid())?;
        let work = (self.work)()?;
        costs.cpu.push((cpu(watcher.pid())? - cpu_before) / 1e3 / self.each);
        costs.memory.push(memory(watcher.pid())?);
        costs.undelivered += watcher.stop(self.probes)?;
        Ok(work)
    }

    fn start(&self, name: &str, sink: &Sink, folder: &Folder) -> Result<Watcher> {
        if name == OURS {
            return Ok(Watcher::Agent(Box::new(agent(sink, self.probes)?)));
        }
        let (_, arguments) = self.peers.iter().find(|(peer, _)| *peer == name).context("no such peer")?;
        Ok(Watcher::Peer(peer::start(name, arguments, folder.path())?))
    }
}

/// Memory of a process, MB.
pub fn memory(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024.0 / 1e6)
}

/// Time that all threads of a process have had a CPU, ns (`schedstat`, its first field).
pub fn cpu(pid: u32) -> Result<f64> {
    let mut sum = 0.0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        sum += text.split_whitespace().next().context("an empty schedstat")?.parse::<f64>()?;
    }
    Ok(sum)
}
