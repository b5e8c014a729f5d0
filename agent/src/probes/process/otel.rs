//! Event -> signals: the attributes of a process, its end, its span.

use crate::{
    enrich::{clock::Clock, identity::identity, process::Process},
    otlp::{
        Attributes,
        attribute::{self as key},
        logs::LogEvent,
        spans::{Kind, Span},
    },
    probes::Output,
};
use agent_common::process::{Exit, Task, missing};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0.
    Success,
    /// Another exit code.
    Failure,
    /// A signal.
    Signal,
    /// Not told by this rung.
    Unknown,
}

impl Outcome {
    /// In the order of their numbers.
    pub const ALL: [Outcome; 4] = [Outcome::Success, Outcome::Failure, Outcome::Signal, Outcome::Unknown];

    /// Value of `leaf.process.outcome`.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Success => "success",
            Outcome::Failure => "failure",
            Outcome::Signal => "signal",
            Outcome::Unknown => "unknown",
        }
    }
}

/// What the end of a process tells; `None` is not told by this rung.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    status: Option<i32>,
    usage: Option<Usage>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Usage {
    utime_ns: u64,
    stime_ns: u64,
    minor_faults: u64,
    major_faults: u64,
    threads_uncounted: u32,
}

impl End {
    /// Reads an exit record.
    pub fn of(exit: &Exit) -> Self {
        let (utime_ns, stime_ns) = cpu_times(exit.utime_ns, exit.stime_ns, exit.runtime_ns);
        Self {
            status: (exit.task.missing & missing::STATUS == 0).then_some(exit.status),
            usage: (exit.task.missing & missing::USAGE == 0).then_some(Usage {
                utime_ns,
                stime_ns,
                minor_faults: exit.minor_faults,
                major_faults: exit.major_faults,
                threads_uncounted: exit.threads_missed,
            }),
        }
    }

    fn code(&self) -> Option<i32> {
        self.status.filter(|status| status & 0x7f == 0).map(|status| status >> 8 & 0xff)
    }

    fn signal(&self) -> Option<i32> {
        self.status.map(|status| status & 0x7f).filter(|signal| *signal != 0)
    }

    /// See [`Outcome`].
    pub fn outcome(&self) -> Outcome {
        match (self.signal(), self.code()) {
            (Some(_), _) => Outcome::Signal,
            (_, Some(0)) => Outcome::Success,
            (_, Some(_)) => Outcome::Failure,
            (None, None) => Outcome::Unknown,
        }
    }

    /// Adds its attributes.
    pub fn write(&self, attributes: &mut Attributes<'_>) {
        if let Some(code) = self.code() {
            attributes.int(key::EXIT_CODE, i64::from(code));
        }
        if let Some(signal) = self.signal() {
            match signal_name(signal) {
                Some(name) => attributes.text(key::EXIT_SIGNAL, name),
                None => attributes.text(key::EXIT_SIGNAL, &format!("SIG{signal}")),
            }
            attributes.bool(key::EXIT_CORE_DUMPED, self.status.is_some_and(|status| status & 0x80 != 0));
        }
        if let Some(usage) = self.usage {
            attributes.int(key::CPU_USER_TIME, usage.utime_ns as i64);
            attributes.int(key::CPU_SYSTEM_TIME, usage.stime_ns as i64);
            attributes.int(key::FAULTS_MINOR, usage.minor_faults as i64);
            attributes.int(key::FAULTS_MAJOR, usage.major_faults as i64);
            if usage.threads_uncounted > 0 {
                attributes.int(key::THREADS_UNCOUNTED, i64::from(usage.threads_uncounted));
            }
        }
    }

    /// Why the span failed, if it did.
    fn error(&self, text: &mut String) -> bool {
        use std::fmt::Write as _;
        text.clear();
        match (self.signal(), self.code()) {
            (Some(signal), _) => match signal_name(signal) {
                Some(name) => write!(text, "killed by {name}"),
                None => write!(text, "killed by signal {signal}"),
            },
            (_, Some(code)) if code != 0 => write!(text, "exit code {code}"),
            _ => return false,
        }
        .is_ok()
    }
}

/// User and system time as getrusage tells them: the kernel samples which of
/// the two by ticks, and scales the samples to the time that it measured
/// (`cputime_adjust`, kernel/sched/cputime.c). All in ns.
pub fn cpu_times(utime: u64, stime: u64, runtime: u64) -> (u64, u64) {
    if stime == 0 {
        return (runtime, 0);
    }
    if utime == 0 {
        return (0, runtime);
    }
    let system = u128::from(stime) * u128::from(runtime) / (u128::from(stime) + u128::from(utime));
    let system = system as u64;
    (runtime - system, system)
}

/// Adds the log event `name` of a process, with `more` attributes of its own.
pub fn log(
    name: &str,
    task: &Task,
    process: &Process,
    clock: &Clock,
    out: &mut Output,
    more: impl FnOnce(&mut Attributes<'_>),
) {
    let event = LogEvent { name, time: clock.unix(task.time_ns), observed: 0, span: process.span };
    out.log(&event, |attributes| {
        attributes.int(key::PROCESS_PID, i64::from(task.pid));
        attributes.int(key::THREAD_ID, i64::from(task.tid));
        identity(attributes, process);
        if task.cgroup.id != 0 {
            attributes.int(key::CGROUP_ID, task.cgroup.id as i64);
        }
        more(attributes);
    });
}

/// Adds the span of a process that has ended; `error` is memory to write its error to.
pub fn span(task: &Task, process: &Process, end: &End, clock: &Clock, error: &mut String, out: &mut Output) {
    let failed = end.error(error);
    let begin = [process.exec_ns, process.start.boot, task.time_ns].into_iter().find(|ns| *ns != 0);
    let base = process.executable.rsplit('/').next().filter(|base| !base.is_empty());
    let span = Span {
        context: process.span,
        parent: process.parent_span,
        name: base.unwrap_or(&process.comm),
        kind: Kind::Internal,
        start: clock.unix(begin.unwrap_or(task.time_ns).min(task.time_ns)),
        end: clock.unix(task.time_ns),
        error: failed.then_some(error.as_str()),
        link: None,
    };
    out.span(&span, |attributes| {
        attributes.int(key::PROCESS_PID, i64::from(task.pid));
        identity(attributes, process);
        end.write(attributes);
    });
}

/// Linux signal numbers of x86 and ARM (signal(7)).
const SIGNALS: [&str; 31] = [
    "SIGHUP",
    "SIGINT",
    "SIGQUIT",
    "SIGILL",
    "SIGTRAP",
    "SIGABRT",
    "SIGBUS",
    "SIGFPE",
    "SIGKILL",
    "SIGUSR1",
    "SIGSEGV",
    "SIGUSR2",
    "SIGPIPE",
    "SIGALRM",
    "SIGTERM",
    "SIGSTKFLT",
    "SIGCHLD",
    "SIGCONT",
    "SIGSTOP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGXCPU",
    "SIGXFSZ",
    "SIGVTALRM",
    "SIGPROF",
    "SIGWINCH",
    "SIGIO",
    "SIGPWR",
    "SIGSYS",
];

fn signal_name(signal: i32) -> Option<&'static str> {
    SIGNALS.get(usize::try_from(signal).ok()?.checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(status: i32) -> End {
        End { status: Some(status), usage: None }
    }

    #[test]
    fn a_status_is_read_as_waitpid_reads_it() {
        let mut text = String::new();
        assert_eq!(end(0).outcome(), Outcome::Success);
        assert!(!end(0).error(&mut text));
        assert_eq!((end(3 << 8).code(), end(3 << 8).outcome()), (Some(3), Outcome::Failure));
        assert!(end(3 << 8).error(&mut text));
        assert_eq!(text, "exit code 3");
        assert_eq!((end(9).signal(), end(9).code(), end(9).outcome()), (Some(9), None, Outcome::Signal));
        assert!(end(11 | 0x80).error(&mut text));
        assert_eq!(text, "killed by SIGSEGV");
        assert!(end(34).error(&mut text));
        assert_eq!(text, "killed by signal 34");
    }

    #[test]
    fn cpu_times_share_the_measured_time_as_the_ticks_say() {
        assert_eq!(cpu_times(0, 0, 700), (700, 0));
        assert_eq!(cpu_times(0, 4, 700), (0, 700));
        assert_eq!(cpu_times(30, 10, 800), (600, 200));
        assert_eq!(cpu_times(u64::MAX / 2, u64::MAX / 2, u64::MAX), (u64::MAX - u64::MAX / 2, u64::MAX / 2));
    }
}
