//! What a program costs the kernel's verifier: a debugger of the agent that makes each of its
//! calls of bpf(BPF_PROG_LOAD) ask for the verifier's statistics, and reads them. So it
//! is the very programs that are measured, as the agent loads them on this kernel.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::libc::{SYS_bpf, user_regs_struct};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::agent;

/// A load of a program.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Load {
    /// Up to 15 characters of the program's name.
    pub program: String,
    /// Whether the kernel has taken it.
    pub taken: bool,
    /// Instructions that the verifier has processed, on all ways; at most 1,000,000.
    pub instructions: u64,
    /// The most states that it had to remember at once.
    pub peak_states: u64,
    /// What else it has said.
    pub said: String,
}

const BPF_PROG_LOAD: u64 = 5;
/// `BPF_LOG_STATS` (5.2)
const STATISTICS: u32 = 4;

/// Offsets in `union bpf_attr` of BPF_PROG_LOAD, include/uapi/linux/bpf.h.
mod attribute {
    pub const LOG_LEVEL: u64 = 24;
    pub const LOG_SIZE: u64 = 28;
    pub const LOG_BUFFER: u64 = 32;
    pub const NAME: u64 = 48;
}

/// Runs the agent with these arguments, and reads what each of its programs costs.
///
/// # Errors
/// If it cannot be traced, or fails.
pub fn loads(arguments: &[&str], env: &[(&str, &str)]) -> Result<Vec<Load>> {
    // It stops itself, to be seized before it does anything.
    let launcher = ["/bin/sh", "-c", "kill -STOP $$; exec \"$@\"", "sh"];
    let mut command: Command = agent::command(&launcher, arguments, env)?;
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    let traced = trace(pid);
    if traced.is_err() {
        let _ = child.kill();
    }
    let _ = child.wait();
    traced
}

fn trace(pid: Pid) -> Result<Vec<Load>> {
    use nix::sys::wait::WaitPidFlag;
    waitpid(pid, Some(WaitPidFlag::WUNTRACED)).context("it does not stop")?;
    ptrace::seize(pid, ptrace::Options::PTRACE_O_TRACESYSGOOD).context("failed to trace the agent")?;
    nix::sys::signal::kill(pid, Signal::SIGCONT)?;
    let mut loads = Vec::new();
    // The call that it is in.
    let mut call: Option<Asked> = None;
    let mut is_inside = false;
    loop {
        match waitpid(pid, None)? {
            WaitStatus::Exited(_, code) => {
                ensure!(code == 0, "the agent ended with {code}");
                return Ok(loads);
            }
            WaitStatus::PtraceSyscall(_) => {
                let registers = Registers::of(&ptrace::getregs(pid)?);
                is_inside = !is_inside;
                if is_inside && registers.number == SYS_bpf.cast_unsigned() && registers.first == BPF_PROG_LOAD {
                    call = Asked::insert(pid, registers.second, registers.stack)?;
                } else if !is_inside && let Some(asked) = call.take() {
                    loads.push(asked.take_out(pid, registers.result.cast_signed() >= 0)?);
                }
                ptrace::syscall(pid, None)?;
            }
            WaitStatus::Stopped(_, signal) => {
                let pass = !matches!(signal, Signal::SIGTRAP | Signal::SIGSTOP | Signal::SIGCONT);
                ptrace::syscall(pid, pass.then_some(signal))?;
            }
            WaitStatus::PtraceEvent(..) => ptrace::syscall(pid, None)?,
            WaitStatus::Signaled(_, signal, _) => anyhow::bail!("the agent was killed by {signal}"),
            _ => {}
        }
    }
}

/// What a stop of a system call has in its registers.
struct Registers {
    number: u64,
    first: u64,
    second: u64,
    stack: u64,
    /// Once the call is over.
    result: u64,
}

impl Registers {
    #[cfg(target_arch = "x86_64")]
    fn of(all: &user_regs_struct) -> Self {
        Self { number: all.orig_rax, first: all.rdi, second: all.rsi, stack: all.rsp, result: all.rax }
    }

    #[cfg(target_arch = "aarch64")]
    fn of(all: &user_regs_struct) -> Self {
        Self { number: all.regs[8], first: all.regs[0], second: all.regs[1], stack: all.sp, result: all.regs[0] }
    }
}

/// A call that was made to ask for statistics.
struct Asked {
    attributes: u64,
    buffer: u64,
}

/// Bytes of log: statistics are a few lines, and so is a refusal without its trace.
const LOG: usize = 8192;

impl Asked {
    /// Changes the arguments of a call that does not ask for a log yet.
    fn insert(pid: Pid, attributes: u64, stack: u64) -> Result<Option<Self>> {
        let memory = memory(pid)?;
        let mut level = [0; 4];
        memory.read_exact_at(&mut level, attributes + attribute::LOG_LEVEL)?;
        if u32::from_ne_bytes(level) != 0 {
            return Ok(None);
        }
        // Far below what the stack is used for, and what a leaf function may use of it.
        let buffer = (stack - 4 * LOG as u64) & !15;
        memory.write_all_at(&STATISTICS.to_ne_bytes(), attributes + attribute::LOG_LEVEL)?;
        memory.write_all_at(&u32::try_from(LOG)?.to_ne_bytes(), attributes + attribute::LOG_SIZE)?;
        memory.write_all_at(&buffer.to_ne_bytes(), attributes + attribute::LOG_BUFFER)?;
        memory.write_all_at(&[0; LOG], buffer)?;
        Ok(Some(Self { attributes, buffer }))
    }

    /// Puts the arguments back and reads the log.
    fn take_out(self, pid: Pid, taken: bool) -> Result<Load> {
        let memory = memory(pid)?;
        memory.write_all_at(&[0; 16], self.attributes + attribute::LOG_LEVEL)?;
        let mut name = [0; 16];
        memory.read_exact_at(&mut name, self.attributes + attribute::NAME)?;
        let mut log = vec![0; LOG];
        memory.read_exact_at(&mut log, self.buffer)?;
        Ok(Load::read(&until_nul(&name), taken, &until_nul(&log)))
    }
}

fn memory(pid: Pid) -> Result<File> {
    let path = format!("/proc/{pid}/mem");
    OpenOptions::new().read(true).write(true).open(&path).with_context(|| format!("failed to open {path}"))
}

fn until_nul(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

impl Load {
    /// `processed 1234 insns (limit 1000000) max_states_per_insn 4 total_states 56 peak_states 56 mark_read 3`
    fn read(program: &str, taken: bool, log: &str) -> Self {
        let (statistics, said): (Vec<&str>, Vec<&str>) = log.lines().partition(|line| line.starts_with("processed "));
        let words: Vec<&str> = statistics.first().map(|line| line.split(' ').collect()).unwrap_or_default();
        let after = |word: &str| {
            let at = words.iter().position(|known| *known == word)?;
            words.get(at + 1)?.parse().ok()
        };
        Self {
            program: program.to_owned(),
            taken,
            instructions: after("processed").unwrap_or(0),
            peak_states: after("peak_states").unwrap_or(0),
            said: said.join("; "),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_read_with_what_stands_around_them() {
        let log = "R1 invalid mem access\nprocessed 1234 insns (limit 1000000) max_states_per_insn 4 total_states 56 \
                   peak_states 57 mark_read 3\n";
        let load = Load::read("exit_btf", false, log);
        assert_eq!((load.instructions, load.peak_states, load.taken), (1234, 57, false));
        assert_eq!(load.said, "R1 invalid mem access");
        assert_eq!(Load::read("x", true, "").instructions, 0);
    }
}
