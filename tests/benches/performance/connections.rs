//! A connection per request through nginx: what is left of the rate while somebody
//! watches, what is lost, what one costs.

use std::io::Read as _;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use leaf_tests::daemon::Daemon;
use leaf_tests::ledger::Line;
use leaf_tests::nginx::Nginx;
use leaf_tests::place::{self, Folder};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use serde_json::Value;

use crate::report::{Goal, Report};
use crate::sink::Sink;
use crate::watch::{Contest, Outcome, SETTLE, Work, agent, cpu, memory};

const SECONDS: u32 = 3;
const ROUNDS: usize = 5;
const WORKERS: u32 = 2;
const PATIENCE: Duration = Duration::from_secs(30);

/// The rate that is left, beside libbpf-tools' tcplife.
pub fn kept(report: &mut Report) -> Result<()> {
    let nginx = Nginx::start(WORKERS)?;
    let contest = Contest {
        peers: &[("tcplife", &[])],
        probes: "network",
        rounds: ROUNDS,
        work: &|| {
            let load = nginx.load(SECONDS, true)?;
            Ok(Work { rate: load.rate, p99: load.p99_ms })
        },
        each: f64::from(SECONDS),
    };
    let Outcome { alone, kept, p99, undelivered, cpu, memory } = contest.run()?;
    let mut add =
        |what: String, unit, goal, values: &[(&str, f64)]| report.add(what, unit, values[0].1, goal, &values[1..]);
    add(format!("connection per request kept, of {:.0}/s", alone.rate), "", Goal::AtLeast(0.97), &kept);
    add(format!("P99 of such a request, of {:.2} ms, times", alone.p99), "", Goal::None, &p99);
    add("events and spans not delivered, by the ledger".into(), "", Goal::AtMost(0.0), &[("leaf", undelivered as f64)]);
    let share: Vec<_> = cpu.iter().map(|(name, micros)| (*name, micros / 1e6)).collect();
    add("CPU of the watcher, of one core".into(), "", Goal::None, &share);
    add("memory under the load".into(), "MB", Goal::AtMost(50.0), &memory);
    Ok(())
}

/// A bulk transfer over loopback by iperf3, beside tcplife.
pub fn transfer(report: &mut Report) -> Result<()> {
    let port = place::free_port()?;
    let folder = Folder::new("iperf3")?;
    let program = place::program("iperf3").context("no iperf3: run `cargo xtask setup --bench`")?;
    let mut command = Command::new(&program);
    command.args(["--server", "--forceflush", "--bind", "127.0.0.1", "--port"]).arg(port.to_string());
    let mut server = Daemon::start("iperf3", command, folder.path())?;
    server.wait_until("a listening socket", PATIENCE, |server| server.stdout().contains("listening"))?;
    let transfer = || -> Result<Work> {
        let mut command = Command::new(&program);
        command.args(["--client", "127.0.0.1", "--json", "--time"]).arg(SECONDS.to_string());
        let output = command.arg("--port").arg(port.to_string()).output()?;
        let said: Value = serde_json::from_slice(&output.stdout)?;
        let rate = said["end"]["sum_received"]["bits_per_second"].as_f64();
        Ok(Work::at(rate.with_context(|| format!("iperf3: {said}"))?))
    };
    let contest = Contest {
        peers: &[("tcplife", &[])],
        probes: "network",
        rounds: ROUNDS,
        work: &transfer,
        each: f64::from(SECONDS),
    };
    let Outcome { alone, kept, .. } = contest.run()?;
    report.add(
        format!("bulk transfer kept, of {:.1} Gbit/s", alone.rate / 1e9),
        "",
        kept[0].1,
        Goal::AtLeast(0.99),
        &kept[1..],
    );
    Ok(())
}

/// No event may be lost at a given rate, by the ledger and by the receiver.
pub fn lost(report: &mut Report) -> Result<()> {
    const RATE: u32 = 10_000;
    const COUNT: u32 = 10 * RATE;
    let sink = Sink::start()?;
    let agent = agent(&sink, "network")?;
    std::thread::sleep(SETTLE);
    let idle = cpu(agent.pid())?;
    let begin = Instant::now();
    connect(COUNT, RATE)?;
    let rate = f64::from(COUNT) / begin.elapsed().as_secs_f64();
    std::thread::sleep(SETTLE);
    let (memory, cpu) = (memory(agent.pid())?, cpu(agent.pid())? - idle);
    let finished = agent.terminate(PATIENCE)?;
    let line = Line::of(&finished.stderr, "network events")?;
    let records = sink.take()?;
    ensure!(records.len() as u64 == line.outcome("delivered"), "the receiver has {} of {line:?}", records.len());
    for kind in ["tcp_connect", "tcp_accept", "tcp_close"] {
        let expected = if kind == "tcp_close" { 2 * COUNT } else { COUNT };
        let told = records.iter().filter(|record| record.event_name == kind && is_ours(record)).count();
        let missing = f64::from(expected) - told as f64;
        report.add(
            format!("{kind} lost of {expected} at {rate:.0} connections/s"),
            "",
            missing,
            Goal::AtMost(0.0),
            &[],
        );
    }
    let unsent = line.undelivered();
    report.add("network events not delivered, by the ledger", "", unsent as f64, Goal::AtMost(0.0), &[]);
    report.add("CPU of the agent per connection (2 ends)", "µs", cpu / 1e3 / f64::from(COUNT), Goal::None, &[]);
    report.add("RSS after so many connections", "MB", memory, Goal::AtMost(50.0), &[]);
    Ok(())
}

/// Memory with many connections open at once.
pub fn open(report: &mut Report) -> Result<()> {
    /// Both ends are in the table. Several processes share them, for the limit on open files.
    const PAIRS: usize = 50_000;
    const PROCESSES: usize = 10;
    let sink = Sink::start()?;
    let agent = agent(&sink, "network")?;
    let mut holders = Vec::new();
    for _ in 0..PROCESSES {
        let mut command = Command::new(env!("CARGO_BIN_EXE_workload"));
        command.arg("connections").arg((PAIRS / PROCESSES).to_string());
        let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        holder.stdout.take().context("piped")?.read_exact(&mut [0]).context("the connections were not made")?;
        holders.push(holder);
    }
    // Past the first report of long connections.
    std::thread::sleep(Duration::from_secs(33));
    let memory = memory(agent.pid())?;
    for mut holder in holders {
        drop(holder.stdin.take());
        ensure!(holder.wait()?.success(), "a holder of connections failed");
    }
    std::thread::sleep(SETTLE);
    let finished = agent.terminate(PATIENCE)?;
    let line = Line::of(&finished.stderr, "network events")?;
    let records = sink.take()?;
    let whole = |record: &&LogRecord| {
        let has = |key: &str| record.attributes.iter().any(|attribute| attribute.key == key);
        record.event_name == "tcp_close" && is_ours(record) && has("process.pid") && has("leaf.connection.duration")
    };
    let missing = 2.0 * PAIRS as f64 - records.iter().filter(whole).count() as f64;
    report.add(format!("RSS with {} connections in the table", 2 * PAIRS), "MB", memory, Goal::AtMost(50.0), &[]);
    report.add("of them closed without owner or begin, or lost", "", missing, Goal::AtMost(0.0), &[]);
    let unsent = line.undelivered();
    report.add("their events not delivered, by the ledger", "", unsent as f64, Goal::AtMost(0.0), &[]);
    Ok(())
}

/// Whether a record is of one of our connections, and of nobody else's on this machine.
fn is_ours(record: &LogRecord) -> bool {
    let value = record.attributes.iter().find(|attribute| attribute.key == "destination.address");
    value.is_some_and(|address| format!("{:?}", address.value).contains("127.0.1."))
}

/// Several, on addresses of their own: a port that was used for one is taken for a minute.
fn listeners() -> Result<Vec<TcpListener>> {
    let listener = |last| TcpListener::bind((Ipv4Addr::new(127, 0, 1, last), 0));
    Ok((1..=16).map(listener).collect::<Result<_, _>>()?)
}

/// Makes connections over loopback at a rate, each accepted, and closed by the client first.
fn connect(count: u32, rate: u32) -> Result<()> {
    let listeners = listeners()?;
    let begin = Instant::now();
    for number in 0..count {
        let due = Duration::from_secs_f64(f64::from(number) / f64::from(rate));
        if let Some(early) = due.checked_sub(begin.elapsed()) {
            std::thread::sleep(early);
        }
        let listener = &listeners[number as usize % listeners.len()];
        let client = TcpStream::connect(listener.local_addr()?)?;
        let (mut server, _) = listener.accept()?;
        drop(client);
        ensure!(server.read(&mut [0])? == 0, "data on an empty connection");
    }
    Ok(())
}
