//! `cargo xtask bench`: what the agent costs, side by side with its peers.

use anyhow::Result;

use crate::workspace::Workspace;
use crate::{setup, shell};

/// Measure what the agent costs, side by side with other tools.
///
/// Prints a table and writes it as JSON to bench.json in cargo's target folder. It
/// takes root; a benchmark whose peer is missing says so.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only the benchmarks with these names
    names: Vec<String>,
}

/// The command `bench`.
pub fn command(workspace: &Workspace, args: &Args) -> Result<()> {
    setup::toolchain(workspace)?;
    let missing = setup::bench(workspace)?;
    setup::print_errors(&missing);
    if !missing.is_empty() {
        eprintln!("setup: going on without these peers to compare with");
    }
    let agent = workspace.build_agent()?;
    shell::run(
        workspace
            .cargo()
            .args(["bench", "--package=leaf-tests", "--bench=performance", "--"])
            .args(&args.names)
            .env("AGENT_BIN", agent)
            .env("LEAF_BENCH_FILE", workspace.target()?.join("bench.json")),
    )
}
