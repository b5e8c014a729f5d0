//! Children that a test runs, with what the kernel tells their parent of them:
//! the truth that events are compared with.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use nix::sys::resource::{UsageWho, getrusage};

/// The program `workload`: the one that `WORKLOAD_BIN` names, by default the one beside the tests.
///
/// # Panics
/// If the test's own path is not known.
#[must_use]
pub fn program() -> PathBuf {
    std::env::var_os("WORKLOAD_BIN").map_or_else(
        || {
            // target/release/deps/<test>
            let test = std::env::current_exe().expect("procfs");
            let folder = test.ancestors().nth(2).expect("a folder of cargo's");
            folder.join("workload")
        },
        PathBuf::from,
    )
}

/// What waitpid and getrusage say of a child that has ended.
#[derive(Debug, Clone)]
pub struct Truth {
    /// Its process id.
    pub pid: u32,
    /// Exit code, if it ended by itself.
    pub code: Option<i32>,
    /// Signal, if one ended it.
    pub signal: Option<i32>,
    /// User and system time together.
    pub cpu: Duration,
    /// Page faults without I/O.
    pub minor_faults: i64,
    /// Page faults with I/O.
    pub major_faults: i64,
    /// Before it was started.
    pub before: SystemTime,
    /// After it was waited for.
    pub after: SystemTime,
}

impl Truth {
    /// Starts a child, lets `act` do something to it, and waits.
    ///
    /// What `getrusage` says of all children so far grows by what the child
    /// used, so no other child may be waited for at the same time.
    ///
    /// # Errors
    /// If the child cannot be started or waited for.
    pub fn of(command: &mut Command, act: impl FnOnce(&mut Child)) -> Result<Self> {
        let used = usage()?;
        let before = SystemTime::now();
        let mut child = command.spawn().with_context(|| format!("failed to start {command:?}"))?;
        act(&mut child);
        let status = child.wait()?;
        let after = SystemTime::now();
        let now = usage()?;
        Ok(Self {
            pid: child.id(),
            code: status.code(),
            signal: status.signal(),
            cpu: now.0 - used.0,
            minor_faults: now.1 - used.1,
            major_faults: now.2 - used.2,
            before,
            after,
        })
    }

    /// A `/bin/cat` that is killed.
    ///
    /// # Errors
    /// As [`Truth::of`].
    ///
    /// # Panics
    /// If it does not answer.
    pub fn of_killed_cat() -> Result<Self> {
        let mut cat = Command::new("/bin/cat");
        Self::of(cat.stdin(Stdio::piped()).stdout(Stdio::piped()), |child| {
            // It answers, so its exec is over: until then a signal would end a fork of ours.
            let (mut input, output) = (child.stdin.take().expect(PIPED), child.stdout.take().expect(PIPED));
            writeln!(input, "there?").expect(PIPED);
            BufReader::new(output).read_line(&mut String::new()).expect(PIPED);
            child.kill().expect("it lives");
        })
    }
}

/// Why a test's own pipes can be relied on.
const PIPED: &str = "a pipe of ours";

/// CPU time, minor and major faults of all children that were waited for.
fn usage() -> Result<(Duration, i64, i64)> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let time = |time: nix::sys::time::TimeVal| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        let micros = u64::try_from(time.tv_usec()).unwrap_or(0);
        Duration::from_secs(seconds) + Duration::from_micros(micros)
    };
    let cpu = time(usage.user_time()) + time(usage.system_time());
    Ok((cpu, usage.minor_page_faults(), usage.major_page_faults()))
}
