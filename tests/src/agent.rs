//! The real agent, as a child process.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::Signal;

use crate::daemon::Daemon;
use crate::place::{self, Folder};

/// A running agent.
#[derive(Debug)]
pub struct AgentProcess {
    daemon: Daemon,
    _folder: Folder,
}

/// What an agent leaves behind.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// All of its standard output: data.
    pub stdout: String,
    /// All of its standard error: logs, and the ledger.
    pub stderr: String,
}

impl AgentProcess {
    /// Whether there is an agent to start.
    #[must_use]
    pub fn available() -> bool {
        binary().is_file()
    }

    /// Starts the agent that `AGENT_BIN` names, by default `target/release/agent`.
    ///
    /// Of our own environment it does not see what would change its meaning
    /// (`OTEL_…`, `LEAF_…`, `RUST_LOG`); `env` comes on top.
    ///
    /// # Errors
    /// If there is no such file or it cannot be started.
    pub fn start(args: &[&str], env: &[(&str, &str)]) -> Result<Self> {
        Self::start_by(&[], args, env)
    }

    /// The same by another program, which is to replace itself by the command that
    /// its last arguments are (`setpriv --reuid=65534 …`).
    ///
    /// # Errors
    /// As [`AgentProcess::start`].
    pub fn start_by(launcher: &[&str], args: &[&str], env: &[(&str, &str)]) -> Result<Self> {
        let folder = Folder::new("agent")?;
        let daemon = Daemon::start("agent", command(launcher, args, env)?, folder.path())?;
        Ok(Self { daemon, _folder: folder })
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// Standard output so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        self.daemon.stdout()
    }

    /// Standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.daemon.stderr()
    }

    /// Waits until standard error contains `text`.
    ///
    /// # Errors
    /// If the agent ends first or the time is over.
    pub fn wait_for_stderr(&mut self, text: &str, timeout: Duration) -> Result<()> {
        let what = format!("{text:?} on standard error");
        self.daemon.wait_until(&what, timeout, |agent| agent.stderr().contains(text))
    }

    /// Waits until standard output contains `text`.
    ///
    /// # Errors
    /// If the agent ends first or the time is over.
    pub fn wait_for_stdout(&mut self, text: &str, timeout: Duration) -> Result<()> {
        let what = format!("{text:?} on standard output");
        self.daemon.wait_until(&what, timeout, |agent| agent.stdout().contains(text))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// If the agent has ended already.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.daemon.signal(signal)
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Errors
    /// If the agent has ended already, or does not end within `timeout`.
    pub fn terminate(mut self, timeout: Duration) -> Result<Finished> {
        self.signal(Signal::TERM)?;
        self.wait(timeout)
    }

    /// Waits for an agent that ends by itself.
    ///
    /// # Errors
    /// If it does not within `timeout`.
    pub fn wait(mut self, timeout: Duration) -> Result<Finished> {
        let status = self.daemon.wait(timeout)?;
        Ok(Finished { status, stdout: self.stdout(), stderr: self.stderr() })
    }
}

/// The command that starts the agent, for a test that wires its pipes itself.
///
/// # Errors
/// If there is no agent.
pub fn command(launcher: &[&str], args: &[&str], env: &[(&str, &str)]) -> Result<Command> {
    let binary = binary();
    ensure!(binary.is_file(), "no agent at {}: run `cargo build --release`, or set AGENT_BIN", binary.display());
    Ok(command_of(&binary, launcher, args, env))
}

/// The same for an agent at another place.
#[must_use]
pub fn command_of(binary: &Path, launcher: &[&str], args: &[&str], env: &[(&str, &str)]) -> Command {
    let mut command = match launcher {
        [] => Command::new(binary),
        [program, rest @ ..] => {
            let mut command = Command::new(program);
            command.args(rest).arg(binary);
            command
        }
    };
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("OTEL_") || text.starts_with("LEAF_") || text == "RUST_LOG" {
            command.env_remove(&name);
        }
    }
    command.args(args).envs(env.iter().copied());
    command
}

/// Where the agent is.
#[must_use]
pub fn binary() -> PathBuf {
    std::env::var_os("AGENT_BIN").map_or_else(
        || {
            std::env::var_os("CARGO_TARGET_DIR")
                .map_or_else(|| place::workspace().join("target"), PathBuf::from)
                .join("release/agent")
        },
        PathBuf::from,
    )
}
