//! The matrix: every kernel of [`matrix::KERNELS`] boots in a virtual machine and runs
//! the suite `kernels` inside.

mod boot;
mod image;
pub mod matrix;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use self::boot::Told;
use self::image::Image;
use self::matrix::{KERNELS, Kernel, MACHINES, Machine, SHORT};
use crate::setup;
use crate::shell;
use crate::toolchain::find_program;
use crate::workspace::Workspace;

/// Programs of the host's that the tests call in the guest.
const PROGRAMS: &[&str] =
    &["sh", "true", "cat", "sleep", "mount", "umount", "unshare", "setpriv", "ip", "ss", "mkdir", "rm"];

/// What is booted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Extent {
    /// Two kernels.
    Short,
    /// All.
    Whole,
}

/// A boot and what came of it.
struct Boot {
    kernel: &'static Kernel,
    machine: &'static Machine,
    told: Told,
}

/// QEMU, if there is one: setup's or the system's.
pub fn qemu(workspace: &Workspace) -> Option<PathBuf> {
    const NAME: &str = "qemu-system-x86_64";
    let own = workspace.tools().join("bin").join(NAME);
    if own.is_file() { Some(own) } else { find_program(NAME) }
}

/// Boots the kernels and runs the tests inside.
///
/// # Errors
/// If a guest cannot be booted, or a test in one fails.
pub fn test(workspace: &Workspace, agent: &Path, extent: Extent, only: &[String], filter: Option<&str>) -> Result<()> {
    let chosen: Vec<&Kernel> = KERNELS
        .iter()
        .filter(|kernel| match only {
            [] => extent == Extent::Whole || SHORT.contains(&kernel.name),
            names => names.iter().any(|name| name == kernel.name),
        })
        .collect();
    if let Some(unknown) = only.iter().find(|name| KERNELS.iter().all(|kernel| kernel.name != **name)) {
        let known: Vec<_> = KERNELS.iter().map(|kernel| kernel.name).collect();
        bail!("no kernel is called {unknown}; there are {}", known.join(", "));
    }
    let qemu = qemu(workspace).context("no qemu-system-x86_64: run `cargo xtask setup --tests`")?;
    let folder = workspace.target()?.join("kernels");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let tests = build(workspace)?;
    let (mut boots, mut failures) = (Vec::new(), Vec::new());
    for kernel in chosen {
        let of_kernel = setup::kernel_folder(workspace, kernel);
        let image = folder.join(format!("{}.img", kernel.name));
        fs::write(&image, guest(agent, &tests, &of_kernel)?.archive())
            .with_context(|| format!("cannot write {}", image.display()))?;
        for machine in MACHINES {
            // Tests that are named run on a plain machine.
            let is_other = filter.is_some() && !machine.tests.is_empty();
            if is_other || !machine.kernels.is_empty() && !machine.kernels.contains(&kernel.name) {
                continue;
            }
            let number = MACHINES.iter().position(|known| known.name == machine.name).unwrap_or_default();
            let log = folder.join(format!("{}-{number}.log", kernel.name));
            let begin = Instant::now();
            eprintln!("    kernel {}, {} …", kernel.name, machine.name);
            match boot::boot(&qemu, &of_kernel, machine, &image, filter, &log) {
                Ok(told) => {
                    eprintln!(
                        "    kernel {} ({}), {}: {} tests passed, {} failed, {:.0} s",
                        kernel.name,
                        told.release,
                        machine.name,
                        told.passed,
                        told.failed.len(),
                        begin.elapsed().as_secs_f64()
                    );
                    failures.extend(
                        told.failed.iter().map(|test| format!("{test} on {} ({})", kernel.name, log.display())),
                    );
                    if told.end != Some(0) && told.failed.is_empty() || told.passed + told.failed.len() == 0 {
                        failures.push(format!("the tests on {} as a whole ({})", kernel.name, log.display()));
                    }
                    boots.push(Boot { kernel, machine, told });
                }
                Err(error) => failures.push(format!("{error:#}")),
            }
        }
    }
    if !failures.is_empty() {
        bail!("{}", failures.join("; "));
    }
    Ok(())
}

/// What runs in the guest.
struct Tests {
    guest: PathBuf,
    suite: PathBuf,
    workload: PathBuf,
}

/// Builds the tests and asks cargo where they are.
fn build(workspace: &Workspace) -> Result<Tests> {
    let mut cargo = workspace.cargo();
    cargo
        .args(["build", "--release", "--package=leaf-tests", "--test=kernels", "--bins"])
        .args(["--message-format=json-render-diagnostics"]);
    let messages = shell::stdout(&mut cargo)?;
    let find = |name: &str| {
        let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let mut artifacts = messages.filter(|message| message["target"]["name"] == name);
        let executable = artifacts.find_map(|message| message["executable"].as_str().map(PathBuf::from));
        executable.with_context(|| format!("cargo has built no {name}"))
    };
    Ok(Tests { guest: find("guest")?, suite: find("kernels")?, workload: find("workload")? })
}

fn guest(agent: &Path, tests: &Tests, kernel: &Path) -> Result<Image> {
    let mut image = Image::default();
    image.program(&tests.guest, "init")?;
    image.program(&tests.suite, "leaf/kernels")?;
    image.program(&tests.workload, "leaf/workload")?;
    image.program(agent, "leaf/agent")?;
    image.programs(PROGRAMS)?;
    image.text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n");
    image.text("etc/group", "root:x:0:\nnogroup:x:65534:\n");
    image.text("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n");
    let modules = kernel.join("modules");
    for number in 0..matrix::MODULES.len() {
        let from = modules.join(format!("{}.ko", matrix::MODULES[number]));
        if from.is_file() {
            // In the order in which they need each other.
            image.file(&from, format!("leaf/modules/{number}-{}.ko", matrix::MODULES[number]))?;
        }
    }
    for folder in ["proc", "sys", "dev", "tmp", "run"] {
        image.folder(folder);
    }
    Ok(image)
}
