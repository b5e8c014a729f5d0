//! A connection per request through nginx: what is left of the rate while somebody
//! watches, what is lost, what one costs.

use std::time::Duration;

use anyhow::{Result, ensure};
use leaf_tests::ledger::Line;
use leaf_tests::nginx::Nginx;

use crate::report::{Goal, Report};
use crate::sink::Sink;
use crate::watch::{Contest, Outcome, SETTLE, agent, cpu, memory};

const SECONDS: u32 = 3;
const ROUNDS: usize = 2;
const WORKERS: u32 = 2;
const PATIENCE: Duration = Duration::from_secs(30);

/// The rate that is left, beside libbpf-tools' tcplife.
pub fn kept(report: &mut Report) -> Result<()> {
    let nginx = Nginx::start(WORKERS)?;
    let contest = Contest {
        peers: &[("tcplife", &[])],
        probes: "network",
        rounds: ROUNDS,
        work: &|| Ok(nginx.load(SECONDS, true)?.rate),
        each: f64::from(SECONDS),
    };
    let Outcome { alone, kept, cpu, memory } = contest.run()?;
    let mut add =
        |what: String, unit, goal, values: &[(&str, f64)]| report.add(what, unit, values[0].1, goal, &values[1..]);
    add(format!("connection per request kept, of {alone:.0}/s"), "", Goal::AtLeast(0.97), &kept);
    let share: Vec<_> = cpu.iter().map(|(name, micros)| (*name, micros / 1e6)).collect();
    add("CPU of the watcher, of one core".into(), "", Goal::None, &share);
    add("memory under the load".into(), "MB", Goal::AtMost(50.0), &memory);
    Ok(())
}

/// No event may be lost, by the ledger and by the receiver.
pub fn lost(report: &mut Report) -> Result<()> {
    let nginx = Nginx::start(WORKERS)?;
    let sink = Sink::start()?;
    let agent = agent(&sink, "network")?;
    std::thread::sleep(SETTLE);
    let idle = cpu(agent.pid())?;
    let load = nginx.load(SECONDS, true)?;
    std::thread::sleep(SETTLE);
    let (memory, cpu) = (memory(agent.pid())?, cpu(agent.pid())? - idle);
    let finished = agent.terminate(PATIENCE)?;
    let line = Line::of(&finished.stderr, "network events")?;
    let records = sink.take()?;
    ensure!(records.len() as u64 == line.outcome("delivered"), "the receiver has {} of {line:?}", records.len());
    let closed = records.iter().filter(|record| record.event_name == "tcp_close").count();
    // Both ends of each; connections that wrk gave up at its end come on top.
    let missing = (2 * load.requests).saturating_sub(closed as u64);
    let rate = load.rate;
    report.add(
        format!("tcp_close lost of {} at {rate:.0} connections/s", 2 * load.requests),
        "",
        missing as f64,
        Goal::AtMost(0.0),
        &[],
    );
    let unsent = line.attempted - line.outcome("delivered") - line.outcome("filtered");
    report.add("network events not delivered, by the ledger", "", unsent as f64, Goal::AtMost(0.0), &[]);
    report.add("CPU of the agent per connection (2 ends)", "µs", cpu / 1e3 / load.requests as f64, Goal::None, &[]);
    report.add("RSS after so many connections", "MB", memory, Goal::AtMost(50.0), &[]);
    Ok(())
}
