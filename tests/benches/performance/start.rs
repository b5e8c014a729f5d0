//! From the start of the agent to the first event that its reader sees.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use leaf_tests::agent;

use crate::report::{Goal, Report, median};

const ROUNDS: usize = 7;

/// While processes come and go all the time.
pub fn run(report: &mut Report) -> Result<()> {
    let mut events = Command::new("/bin/sh").args(["-c", "while :; do /bin/sleep 0.01; done"]).spawn()?;
    let times = (0..ROUNDS).map(|_| first_event()).collect::<Result<Vec<_>>>();
    events.kill()?;
    events.wait()?;
    report.add("start to the first event printed", "ms", median(times?), Goal::AtMost(300.0), &[]);
    Ok(())
}

fn first_event() -> Result<f64> {
    let start = Instant::now();
    let mut command = agent::command(&[], &["run", "--exporter", "console", "--format", "json"], &[])?;
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut reader = BufReader::new(child.stdout.take().context("piped")?);
    reader.read_line(&mut String::new())?;
    let time = start.elapsed();
    drop(reader);
    // It ends by itself, as nobody reads.
    child.wait()?;
    std::thread::sleep(Duration::from_millis(50));
    Ok(time.as_secs_f64() * 1e3)
}
