//! `cargo xtask run`: from a fresh clone to a running agent.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Error, Result};

use crate::setup;
use crate::workspace::Workspace;

/// Set up, build and start the agent.
///
/// Examples: `cargo xtask run`, `cargo xtask run -- --exporter console`,
/// `cargo xtask run -- doctor --json`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What the agent is called with; its command is `run` where none is named
    #[arg(trailing_var_arg = true, value_name = "ARGS")]
    arguments: Vec<String>,
}

/// The command `run`. Returns only if it fails: from then on this process is the
/// agent, which gets the terminal's signals and whose exit code is ours.
pub fn command(workspace: &Workspace, args: &Args) -> Result<()> {
    setup::toolchain(workspace)?;
    let agent = workspace.build_agent()?;
    let error = Command::new(&agent).args(with_command(&args.arguments)).exec();
    Err(Error::new(error).context(format!("cannot start {}", agent.display())))
}

/// The arguments, with `run` in front where they name no command.
fn with_command(arguments: &[String]) -> Vec<&str> {
    let arguments = arguments.iter().map(String::as_str);
    match arguments.clone().next() {
        Some(first) if !first.starts_with('-') => arguments.collect(),
        _ => std::iter::once("run").chain(arguments).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_is_the_command_unless_one_is_named() {
        let with = |arguments: &[&str]| {
            let arguments: Vec<_> = arguments.iter().map(ToString::to_string).collect();
            with_command(&arguments).join(" ")
        };
        assert_eq!(with(&[]), "run");
        assert_eq!(with(&["--duration", "10s"]), "run --duration 10s");
        assert_eq!(with(&["run", "--duration", "10s"]), "run --duration 10s");
        assert_eq!(with(&["doctor", "--json"]), "doctor --json");
    }
}
