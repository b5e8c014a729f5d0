//! `cargo xtask bench`: what the agent costs, beside other tools in the same run.
//!
//! Figures are ratios within one run, or costs per event; several rounds, medians.
//! A table goes to standard output, the same as JSON to the file that
//! `LEAF_BENCH_FILE` names.

mod allocator;
mod connections;
mod encode;
mod programs;
mod report;
mod sink;
mod start;
mod storm;
mod watch;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use leaf_tests::skip::is_root;
use report::Report;

#[global_allocator]
static ALLOCATOR: allocator::Counting = allocator::Counting;

/// A benchmark: its name on the command line, what it does.
type Benchmark = (&'static str, fn(&mut Report) -> Result<()>);

const BENCHMARKS: [Benchmark; 10] = [
    ("encode", encode::run),
    ("start", start::run),
    ("programs", programs::run),
    ("network-programs", programs::network),
    ("lost", storm::lost),
    ("storm", storm::kept),
    ("connections-lost", connections::lost),
    ("connections-open", connections::open),
    ("connections", connections::kept),
    ("transfer", connections::transfer),
];

fn main() -> ExitCode {
    // cargo adds `--bench` to what the user gave.
    let names: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    match run(&names) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(names: &[String]) -> Result<()> {
    let known = BENCHMARKS.map(|(name, _)| name);
    for name in names {
        ensure!(known.contains(&name.as_str()), "there is no benchmark {name}; known are {}", known.join(", "));
    }
    ensure!(is_root(), "the benchmarks load eBPF programs: run them as root");
    let mut report = Report::default();
    for (name, benchmark) in BENCHMARKS {
        if names.is_empty() || names.iter().any(|wanted| wanted == name) {
            eprintln!("bench: {name}");
            benchmark(&mut report)?;
        }
    }
    println!("{}", report.table());
    report.write_json()
}
