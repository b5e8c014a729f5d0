//! `cargo xtask …`: everything a fresh clone needs beyond `cargo build`.
//!
//! It depends on no other crate of the workspace: it must build before the eBPF
//! toolchain is there, because it is what brings it.
#![forbid(unsafe_code)]

mod bench;
mod kernels;
mod lint;
mod report;
mod run;
mod setup;
mod shell;
mod test;
mod toolchain;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// Build, run and test Leaf.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Setup(setup::Args),
    Run(run::Args),
    Test(test::Args),
    Bench(bench::Args),
    Lint(lint::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = Workspace::find().and_then(|workspace| match &cli.command {
        Command::Setup(args) => setup::command(&workspace, args),
        Command::Run(args) => run::command(&workspace, args),
        Command::Test(args) => test::command(&workspace, args),
        Command::Bench(args) => bench::command(&workspace, args),
        Command::Lint(args) => lint::command(&workspace, args),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Not `fn main() -> Result`: it would add a backtrace to a plain message.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
