//! A child process that a test owns: its output goes to a file, it ends with the test.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How often a condition is looked at again. Short, for start times are measured with it.
const GLANCE: Duration = Duration::from_millis(10);

/// How many lines of a log an error shows.
const TAIL: usize = 40;

/// A running child process with its output in files.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Daemon {
    /// Starts `command`; its output goes to `<name>.out` and `<name>.err` in `folder`.
    ///
    /// # Errors
    /// If the files cannot be made or the program cannot be started.
    pub fn start(name: &str, mut command: Command, folder: &Path) -> Result<Self> {
        let stdout = folder.join(format!("{name}.out"));
        let stderr = folder.join(format!("{name}.err"));
        let file = |path: &Path| File::create(path).with_context(|| format!("failed to make {}", path.display()));
        let child = command
            .stdin(Stdio::null())
            .stdout(file(&stdout)?)
            .stderr(file(&stderr)?)
            .spawn()
            .with_context(|| format!("failed to start {}", command.get_program().display()))?;
        Ok(Self { name: name.to_owned(), child, stdout, stderr })
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to standard output so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        text(&self.stdout)
    }

    /// What it has written to standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        text(&self.stderr)
    }

    /// Waits until `ready` says so.
    ///
    /// # Errors
    /// If the process ends first or the time is over; the error ends with the log's last lines.
    pub fn wait_until(&mut self, what: &str, timeout: Duration, mut ready: impl FnMut(&Self) -> bool) -> Result<()> {
        let start = Instant::now();
        loop {
            // Asked before `ready`, so that what a process wrote last still counts.
            let ended = self.ended()?;
            if ready(self) {
                return Ok(());
            }
            if let Some(status) = ended {
                bail!("{} ended ({status}) before {what}\n{}", self.name, self.tail());
            }
            if start.elapsed() > timeout {
                bail!("{}: no {what} within {timeout:?}\n{}", self.name, self.tail());
            }
            std::thread::sleep(GLANCE);
        }
    }

    /// Sends a signal to the process.
    ///
    /// # Errors
    /// If it has ended already.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        // An ended child that nobody waited for keeps its number, so no stranger is hit.
        if let Some(status) = self.ended()? {
            bail!("{} has ended already ({status})\n{}", self.name, self.tail());
        }
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).with_context(|| format!("failed to send {signal:?} to {}", self.name))
    }

    /// Waits for the process to end.
    ///
    /// # Errors
    /// If it still runs when the time is over.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if start.elapsed() > timeout {
                bail!("{} still runs after {timeout:?}\n{}", self.name, self.tail());
            }
            std::thread::sleep(GLANCE);
        }
    }

    /// The last lines that it wrote, for a person who reads an error.
    #[must_use]
    pub fn tail(&self) -> String {
        let mut shown = String::new();
        for path in [&self.stdout, &self.stderr] {
            let text = text(path);
            let lines: Vec<_> = text.lines().collect();
            if !lines.is_empty() {
                let last = &lines[lines.len().saturating_sub(TAIL)..];
                shown += &format!("--- end of {}\n{}\n", path.display(), last.join("\n"));
            }
        }
        shown
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("failed to look at {}", self.name))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.tail());
        }
        // Both fail only for a child that is gone, which is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file as text; a child killed in the middle of a character must not hide the rest.
fn text(path: &Path) -> String {
    fs::read(path).map_or_else(|_| String::new(), |bytes| String::from_utf8_lossy(&bytes).into())
}
