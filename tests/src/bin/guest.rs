//! The first process of a virtual machine that runs the suite `kernels`: makes of a bare
//! kernel what a node is, runs the tests, says what came of them, and ends the machine.

#![forbid(unsafe_code)]

use std::ffi::CString;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

/// Where the tests write what is for the table.
const TOLD: &str = "/tmp/told";

fn main() {
    match node().and_then(|tests| run(&tests)) {
        Ok(status) => println!("\nLEAF END {}", status.code().unwrap_or(-1)),
        Err(error) => println!("\nguest: {error:#}\nLEAF END -1"),
    }
    nix::unistd::sync();
    // QEMU ends, as it is told not to reboot.
    let _ = reboot(RebootMode::RB_AUTOBOOT);
}

/// Mounts, modules, interfaces, a control group. Returns the names of the tests to run.
fn node() -> Result<Vec<String>> {
    file_system("proc", "/proc")?;
    file_system("sysfs", "/sys")?;
    file_system("devtmpfs", "/dev")?;
    fs::create_dir_all("/dev/shm")?;
    file_system("tmpfs", "/tmp")?;
    file_system("tmpfs", "/run")?;
    file_system("tracefs", "/sys/kernel/tracing")?;
    file_system("bpf", "/sys/fs/bpf")?;
    file_system("securityfs", "/sys/kernel/security")?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    println!("\nLEAF RELEASE {}", release.trim());
    let parameters = fs::read_to_string("/proc/cmdline")?;
    let parameter = |name: &str| parameters.split_whitespace().find_map(|word| word.strip_prefix(name));
    cgroup(parameter("leaf.cgroup=").unwrap_or("v2"))?;
    for module in entries("/leaf/modules") {
        let file = File::open(&module)?;
        let none = CString::default();
        finit_module(&file, &none, ModuleInitFlags::empty()).with_context(|| format!("module {module}"))?;
    }
    Command::new("/bin/ip").args(["link", "set", "lo", "up"]).status().context("ip")?;
    let tests = parameter("leaf.tests=").unwrap_or_default();
    Ok(tests.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

/// Puts this process, and so the tests, into a control group that is not the root.
fn cgroup(version: &str) -> Result<()> {
    let hierarchy = match version {
        "v1" => {
            file_system("tmpfs", "/sys/fs/cgroup")?;
            fs::create_dir_all("/sys/fs/cgroup/memory")?;
            let from = Some("cgroup");
            // A kernel without CONFIG_MEMCG_V1 (6.11) has no such controller, and others still.
            let of = |controller| mount(from, "/sys/fs/cgroup/memory", from, MsFlags::empty(), Some(controller));
            of("memory").or_else(|_| of("pids")).context("cgroup v1")?;
            "/sys/fs/cgroup/memory"
        }
        _ => {
            file_system("cgroup2", "/sys/fs/cgroup")?;
            "/sys/fs/cgroup"
        }
    };
    let folder = Path::new(hierarchy).join("test.slice");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("cgroup.procs"), "0").context("cgroup.procs")
}

fn file_system(kind: &str, at: &str) -> Result<()> {
    fs::create_dir_all(at)?;
    mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>).with_context(|| format!("{kind} at {at}"))
}

/// Paths of the files in a folder, in their order.
fn entries(folder: &str) -> Vec<String> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<String> = files.map(|file| file.path().display().to_string()).collect();
    paths.sort_unstable();
    paths
}

fn run(tests: &[String]) -> Result<ExitStatus> {
    // It has a machine of its own.
    let skipped: &[&str] = if tests.is_empty() { &["--skip=lockdown_"] } else { &[] };
    let status = Command::new("/leaf/kernels")
        .arg("--test-threads=1")
        .args(skipped)
        .args(tests)
        .env("PATH", "/bin")
        .env("AGENT_BIN", "/leaf/agent")
        .env("WORKLOAD_BIN", "/leaf/workload")
        .env("LEAF_TOLD_FILE", TOLD)
        .env("LEAF_TESTS_REQUIRE_ALL", "1")
        .env("LEAF_MATRIX", "1")
        .status()
        .context("/leaf/kernels")?;
    println!();
    for line in fs::read_to_string(TOLD).unwrap_or_default().lines() {
        println!("LEAF TOLD {line}");
    }
    Ok(status)
}
