//! The `agent` binary.
#![forbid(unsafe_code)]

use clap::Parser as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    leaf::cli::Cli::parse().execute()
}
