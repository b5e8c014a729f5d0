//! The command line: one file per command.
#![forbid(unsafe_code)]

mod config;
mod doctor;
mod run;

use crate::config::{CONFIG_VARIABLE, Flag, Loaded, LogLevel};
use clap::{Parser, Subcommand};
use std::{io::IsTerminal as _, path::PathBuf, process::ExitCode};

/// Watches a node from the kernel and sends what it sees to an OpenTelemetry Collector.
///
/// Data goes to standard output, logs to standard error. Exit codes: 0 done,
/// 1 failed, 2 usage or configuration, 3 nothing could be attached and /proc cannot be read.
#[derive(Debug, Parser)]
#[command(name = "agent", version, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    Doctor(doctor::Args),
    Config(config::Args),
}

/// How a command failed; the number is its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Failure {
    /// It could not be done.
    Failed = 1,
    /// Usage or configuration.
    Configuration = 2,
    /// Nothing could be attached.
    NothingAttached = 3,
}

impl Cli {
    /// Runs the command and says what went wrong on standard error.
    #[must_use]
    pub fn execute(self) -> ExitCode {
        let done = match self.command {
            Command::Run(args) => run::execute(args),
            Command::Doctor(args) => doctor::execute(&args),
            Command::Config(args) => config::execute(args),
        };
        match done {
            Ok(()) => ExitCode::SUCCESS,
            Err((failure, text)) => {
                if !text.is_empty() {
                    say(&format!("error: {text}"));
                }
                ExitCode::from(failure as u8)
            }
        }
    }
}

/// Why a command failed, and what to say.
type Refused = (Failure, String);

/// Where the configuration file is.
#[derive(Debug, clap::Args)]
struct File {
    /// Configuration file (YAML)
    #[arg(long, value_name = "FILE", env = CONFIG_VARIABLE)]
    config: Option<PathBuf>,
}

impl File {
    fn read(&self, flags: Vec<Flag>) -> Result<Loaded, Refused> {
        // The names of our variables are ASCII; a value of theirs that is not UTF-8 is refused where it is used.
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())));
        Loaded::read(self.config.as_deref(), environment, flags).map_err(|problems| {
            let count = problems.len();
            let heading = if count == 1 { String::new() } else { format!("{count} problems in the configuration\n") };
            (Failure::Configuration, format!("{heading}{}", problems.join("\n")))
        })
    }
}

/// Writes a line to standard error; if that is closed, nobody can be told.
fn say(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Writes to standard output; a reader that has gone is no failure.
fn print(text: &str) -> Result<(), Refused> {
    use std::io::{ErrorKind, Write as _};
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err((Failure::Failed, format!("failed to write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Sends the agent's own logs to standard error.
fn start_logging(level: LogLevel) {
    let level = match level {
        LogLevel::Error => tracing::Level::ERROR,
        LogLevel::Warn => tracing::Level::WARN,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Debug => tracing::Level::DEBUG,
        LogLevel::Trace => tracing::Level::TRACE,
    };
    // Other crates speak only when something is wrong.
    let filter = tracing_subscriber::EnvFilter::new(format!("warn,h2=error,leaf={level},audit={level}"));
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    // A second call, from a program that embeds the library, changes nothing.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .with_target(false)
        // A log that cannot be written is no reason to panic.
        .log_internal_errors(false)
        .try_init();
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
