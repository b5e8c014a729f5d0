//! One boot of one kernel in QEMU, without any acceleration: it works wherever QEMU does.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::matrix::{Architecture, Machine};

/// Of everything that a guest may do.
const LIMIT: Duration = Duration::from_secs(420);
/// What the guest's lines for us begin with.
const MARK: &str = "LEAF ";

/// What a guest has said.
#[derive(Debug, Default, PartialEq)]
pub struct Told {
    /// `6.1.0-50-cloud-amd64`
    pub release: String,
    /// Lines of tab-separated words.
    pub lines: Vec<Vec<String>>,
    /// Names of tests that failed.
    pub failed: Vec<String>,
    /// Number of tests that passed.
    pub passed: usize,
    /// Exit code of the tests.
    pub end: Option<i32>,
}

/// Boots and runs the tests whose names contain one of `tests`, separated by commas, or all;
/// waits for the end and reads the console, which stays in `log`.
///
/// # Errors
/// If QEMU cannot be started, does not end, or the guest did not come to its end.
pub fn boot(
    qemu: &Path,
    architecture: &Architecture,
    kernel: &Path,
    machine: &Machine,
    image: &Path,
    tests: &str,
    log: &Path,
) -> Result<Told> {
    let named = || format!("cannot write {}", log.display());
    let console = File::create(log).with_context(named)?;
    let append = format!(
        "console={} quiet panic=-1 mitigations=off leaf.tests={tests} {}",
        architecture.console, machine.parameters
    );
    let mut qemu = Command::new(qemu);
    qemu.args(["-accel", "tcg", "-m", "1G", "-nographic", "-nic", "none", "-no-reboot"])
        .args(architecture.arguments)
        .args(["-smp", &machine.cpus.to_string()])
        .arg("-kernel")
        .arg(kernel.join("vmlinuz"))
        .arg("-initrd")
        .arg(image)
        .args(["-append", &append])
        .stdin(Stdio::null())
        .stdout(console.try_clone().with_context(named)?)
        .stderr(console);
    let mut child = qemu.spawn().context("cannot start QEMU")?;
    let begin = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if begin.elapsed() > LIMIT {
            let _ = child.kill();
            let _ = child.wait();
            bail!("a guest has not ended after {} s; its console is {}", LIMIT.as_secs(), log.display());
        }
        thread::sleep(Duration::from_millis(100));
    };
    let text = fs::read(log).with_context(|| format!("cannot read {}", log.display()))?;
    let told = read(&String::from_utf8_lossy(&text));
    if told.end.is_none() {
        bail!("a guest did not come to its end (QEMU: {status}); its console is {}", log.display());
    }
    Ok(told)
}

/// Reads a console: our own lines, and those of the test runner.
fn read(console: &str) -> Told {
    let mut told = Told::default();
    // The console ends lines with a carriage return; a tab before it is an empty last word.
    for line in console.lines().map(|line| line.trim_end_matches('\r')) {
        if let Some(line) = line.strip_prefix(MARK) {
            match line.split_once(' ') {
                Some(("RELEASE", release)) => told.release = release.to_owned(),
                Some(("END", code)) => told.end = code.parse().ok(),
                Some(("TOLD", words)) => told.lines.push(words.split('\t').map(str::to_owned).collect()),
                _ => {}
            }
        } else if let Some((name, outcome)) = line.strip_prefix("test ").and_then(|line| line.split_once(" ... ")) {
            match outcome {
                outcome if outcome.ends_with("FAILED") => told.failed.push(name.to_owned()),
                outcome if outcome.ends_with("ok") => told.passed += 1,
                _ => {}
            }
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_is_read_with_what_the_kernel_says_in_between() {
        let console = "SeaBIOS\r\nLEAF RELEASE 6.1.0-50\r\n[    3.1] clocksource: tsc\r\n\
                       test process::tp_btf ... ok\r\ntest network::procfs ... FAILED\r\n\
                       LEAF TOLD cell\tprocess\ttp_btf\tok\t\r\nLEAF END 101\r\n";
        let told = read(console);
        assert_eq!((told.release.as_str(), told.passed, told.end), ("6.1.0-50", 1, Some(101)));
        assert_eq!(told.failed, ["network::procfs"]);
        assert_eq!(told.lines, [["cell", "process", "tp_btf", "ok", ""]]);
        assert_eq!(read("Kernel panic - not syncing"), Told::default());
    }
}
