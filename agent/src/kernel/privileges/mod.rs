//! Least privilege: once the rooms are attached, the agent gives up what only attaching took.
//!
//! Landlock is not among the means, though it would fit: a process under Landlock may not look into processes outside
//! of its domain, whatever its capabilities are (security/landlock/task.c, `hook_ptrace_access_check`). /proc/PID/exe
//! and /proc/PID/fd of all others would be closed, which is what the agent reads to say who did something. That it
//! changes no file is held by the filter of system calls instead, which refuses to open one for writing.

pub mod capability;
mod seccomp;

pub use capability::Work;

use capability::Lasts;
use rustix::{
    process::{DumpableBehavior, set_dumpable_behavior},
    thread::{CapabilitySet, set_no_new_privs},
};

/// What a process may still do, and what it has given up.
#[derive(Debug)]
pub struct Confinement {
    /// Capabilities that are left.
    pub kept: Vec<String>,
    /// Capabilities that were there before.
    pub given_up: Vec<String>,
    /// System calls that are refused; 0 if there is no filter.
    pub refused_calls: usize,
    /// What could not be done, and why.
    pub problems: Vec<String>,
}

/// Confines the calling thread, and all threads that it makes from now on, to what `work` needs as long as it runs.
/// There is no way back. What the kernel refuses is a problem in the answer, and the rest is done all the same.
#[must_use]
pub fn confine(work: &Work) -> Confinement {
    let mut problems = Vec::new();
    let mut hold = |what: &str, done: Result<(), String>| match done {
        Ok(()) => true,
        Err(cause) => {
            problems.push(format!("{what}: {cause}"));
            false
        }
    };
    let text = |error: rustix::io::Errno| error.to_string();
    let others = std::fs::read_dir("/proc/self/task").map_or(0, |tasks| tasks.count().saturating_sub(1));
    hold(
        "the whole process",
        match others {
            0 => Ok(()),
            _ => Err(format!("{others} threads that were there before keep what they have")),
        },
    );
    // First, so that nothing that is still to be given up can come back by a program.
    let no_new = hold("no new privileges", set_no_new_privs(true).map_err(text));
    let (mut kept, mut gone) = (CapabilitySet::empty(), CapabilitySet::empty());
    let reduced = capability::reduce_to(work.needs_running());
    hold("capabilities", reduced.as_ref().map(drop).map_err(|error| text(*error)));
    if let Ok(reduced) = reduced {
        (kept, gone) = (reduced.kept, reduced.gone);
        // It takes CAP_SETPCAP. What may start no program that gives privileges has nothing to fear from this set.
        if let Err(error) = reduced.bounding {
            match no_new {
                true => tracing::debug!("the bounding set of capabilities stays as it is: {error}"),
                false => drop(hold("the bounding set of capabilities", Err(text(error)))),
            }
        }
    }
    // A core file, and a debugger of the same user, would hold the headers and the key of the exporter.
    hold("no core files", set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(text));
    // Last: it would refuse some of the above.
    let filtered = hold("the filter of system calls", seccomp::apply().map_err(|error| error.to_string()));
    Confinement {
        kept: capability::names(kept),
        given_up: capability::names(gone),
        refused_calls: if filtered { seccomp::refused() } else { 0 },
        problems,
    }
}

impl Confinement {
    /// Says it in the log: one line, and a warning for each problem.
    pub fn announce(&self, work: &Work) {
        let kept: Vec<String> = self.kept.iter().map(|name| format!("{name} ({})", purposes(work, name))).collect();
        let kept = if kept.is_empty() { "no capability".to_owned() } else { kept.join(", ") };
        let calls = match self.refused_calls {
            0 => String::new(),
            calls => format!("; {calls} system calls are refused"),
        };
        tracing::info!("privileges: keeps {kept}; has given up {}{calls}", self.given_up.len());
        tracing::debug!(target: "audit", "privileges: has given up {}", self.given_up.join(", "));
        for problem in &self.problems {
            tracing::warn!("privileges: not reduced as they should be: {problem}");
        }
    }
}

/// What a capability that stays is for.
fn purposes(work: &Work, name: &str) -> String {
    let running = work.needs().filter(|need| need.lasts == Lasts::Run);
    let purposes: Vec<_> =
        running.filter(|need| capability::names(need.capability) == [name]).map(|need| need.purpose).collect();
    purposes.join(", ")
}
