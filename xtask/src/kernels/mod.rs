//! The matrix: every kernel of [`matrix::KERNELS`] boots in a virtual machine and runs
//! the suite `kernels` inside.

mod boot;
mod image;
pub mod matrix;
mod parts;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use self::image::Image;
use self::matrix::{Architecture, KERNELS, Kernel, MACHINES, Machine, SHORT};
use self::parts::Parts;
use crate::setup;
use crate::toolchain::find_program;
use crate::workspace::{Workspace, is_ci};

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
    kernel: &'static str,
    /// `6.1.0-50-cloud-amd64`
    release: String,
    machine: String,
    /// Not made poor.
    is_plain: bool,
    lines: Vec<Vec<String>>,
}

/// QEMU for an architecture, if there is one: setup's or the system's.
pub fn qemu(workspace: &Workspace, architecture: &Architecture) -> Option<PathBuf> {
    let own = workspace.tools().join("bin").join(architecture.qemu);
    if own.is_file() { Some(own) } else { find_program(architecture.qemu) }
}

/// The kernels that are meant: those that are named, or those of the extent.
///
/// # Errors
/// If a name is none of a kernel.
pub fn chosen(extent: Extent, only: &[String]) -> Result<Vec<&'static Kernel>> {
    if let Some(unknown) = only.iter().find(|name| KERNELS.iter().all(|kernel| kernel.name != **name)) {
        let known: Vec<_> = KERNELS.iter().map(|kernel| kernel.name).collect();
        bail!("no kernel is called {unknown}; there are {}", known.join(", "));
    }
    let is_meant = |kernel: &&Kernel| match (only, extent) {
        ([], Extent::Whole) => !kernel.on_demand,
        ([], Extent::Short) => SHORT.contains(&kernel.name),
        (names, _) => names.iter().any(|name| name == kernel.name),
    };
    Ok(KERNELS.iter().filter(is_meant).collect())
}

/// Boots the kernels and runs the tests inside.
///
/// # Errors
/// If a guest cannot be booted, or a test in one fails.
pub fn test(workspace: &Workspace, agent: &Path, extent: Extent, only: &[String], filter: Option<&str>) -> Result<()> {
    let chosen = chosen(extent, only)?;
    let folder = workspace.target()?.join("kernels");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let mut jobs = Vec::new();
    let mut is_complete = extent == Extent::Whole && only.is_empty() && filter.is_none();
    for kernel in chosen {
        let of_kernel = setup::kernel_folder(workspace, kernel);
        if !of_kernel.join("vmlinuz").is_file() {
            if is_ci() {
                bail!("kernel {} is not there, and CI skips none", kernel.name);
            }
            eprintln!("    kernel {}: SKIPPED, setup could not bring it", kernel.name);
            is_complete = false;
            continue;
        }
        let parts = Parts::build(workspace, agent, kernel.architecture)?;
        let image = folder.join(format!("{}.img", kernel.name));
        fs::write(&image, guest(&parts, &of_kernel)?.archive())
            .with_context(|| format!("cannot write {}", image.display()))?;
        for (number, machine) in MACHINES.iter().enumerate() {
            if let Some(tests) = machine.chosen(filter) {
                let log = folder.join(format!("{}-{number}.log", kernel.name));
                jobs.push(Job { kernel, machine, tests, folder: of_kernel.clone(), image: image.clone(), log });
            }
        }
    }
    let (mut boots, mut failures) = (Vec::new(), Vec::new());
    for boot in side_by_side(&jobs, |job| job.run(workspace)) {
        match boot {
            Ok((boot, failed)) => {
                boots.push(boot);
                failures.extend(failed);
            }
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    let (tables, holes) = table::tables(&boots);
    println!("{tables}");
    if is_complete {
        failures.extend(holes);
    }
    if !failures.is_empty() {
        bail!("{}", failures.join("; "));
    }
    if is_complete {
        let document = workspace.root.join("docs/kernels.md");
        let differences = table::differences(&document, &tables)?;
        table::write(&document, &tables)?;
        if is_ci() && !differences.is_empty() {
            bail!("docs/kernels.md says otherwise: {}", differences.join("; "));
        }
    }
    Ok(())
}

/// A machine to boot.
struct Job {
    kernel: &'static Kernel,
    machine: &'static Machine,
    /// Parts of the names of its tests; empty: all.
    tests: String,
    folder: PathBuf,
    image: PathBuf,
    log: PathBuf,
}

impl Job {
    /// What the guest has told, and what has failed in it.
    fn run(&self, workspace: &Workspace) -> Result<(Boot, Vec<String>)> {
        let Self { kernel, machine, log, .. } = self;
        let begin = Instant::now();
        let architecture = kernel.architecture;
        let qemu = qemu(workspace, architecture)
            .with_context(|| format!("no {}: run `cargo xtask setup --tests`", architecture.qemu))?;
        let told = boot::boot(&qemu, architecture, &self.folder, machine, &self.image, &self.tests, log)
            .with_context(|| format!("kernel {}, {}", kernel.name, machine.name))?;
        eprintln!(
            "    kernel {} ({}), {}: {} tests passed, {} failed, {:.0} s",
            kernel.name,
            told.release,
            machine.name,
            told.passed,
            told.failed.len(),
            begin.elapsed().as_secs_f64()
        );
        let mut failed = told.failed;
        if failed.is_empty() && (told.end != Some(0) || told.passed == 0) {
            failed.push("the suite as a whole".into());
        }
        let failed = failed.iter().map(|test| format!("{test} on {} ({})", kernel.name, log.display())).collect();
        let boot = Boot {
            kernel: kernel.name,
            release: told.release,
            machine: machine.name.to_owned(),
            is_plain: machine.is_plain(),
            lines: told.lines,
        };
        Ok((boot, failed))
    }
}

/// Does all jobs, two at a time where there are processors for it: a guest often sleeps.
/// The results are in the order of the jobs.
fn side_by_side<J: Sync, R: Send>(jobs: &[J], run: impl Fn(&J) -> R + Sync) -> Vec<R> {
    /// Each takes one, and what is not in use by others shall stay so.
    const GIBIBYTES: u64 = 4;
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.split_whitespace().next());
    let is_roomy = available.and_then(|kib| kib.parse::<u64>().ok()).is_some_and(|kib| kib >> 20 >= GIBIBYTES);
    let processors = if is_roomy { thread::available_parallelism().map_or(1, usize::from) } else { 1 };
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..processors.min(2) {
            scope.spawn(|| {
                while let Some((number, job)) = {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    jobs.get(number).map(|job| (number, job))
                } {
                    let result = run(job);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((number, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, result)| result).collect()
}

/// The root file system of a guest.
fn guest(parts: &Parts, kernel: &Path) -> Result<Image> {
    let mut image = Image::of(parts.root.clone());
    image.program(&parts.guest, "init")?;
    image.program(&parts.suite, "leaf/kernels")?;
    image.program(&parts.workload, "leaf/workload")?;
    image.program(&parts.agent, "leaf/agent")?;
    image.programs(PROGRAMS)?;
    image.text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n");
    image.text("etc/group", "root:x:0:\nnogroup:x:65534:\n");
    image.text("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n");
    for (number, module) in matrix::MODULES.iter().enumerate() {
        let from = kernel.join("modules").join(format!("{module}.ko"));
        if from.is_file() {
            // In the order in which they need each other.
            image.file(&from, format!("leaf/modules/{number}-{module}.ko"))?;
        }
    }
    for folder in ["proc", "sys", "dev", "tmp", "run"] {
        image.folder(folder);
    }
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_side_by_side_comes_in_its_order() {
        let jobs: Vec<u64> = (0..20).collect();
        let results = side_by_side(&jobs, |job| {
            thread::sleep(std::time::Duration::from_millis((20 - job) % 3));
            job * 2
        });
        assert_eq!(results, jobs.iter().map(|job| job * 2).collect::<Vec<_>>());
    }

    #[test]
    fn the_short_form_names_kernels_of_the_list() {
        assert!(SHORT.iter().all(|name| KERNELS.iter().any(|kernel| kernel.name == *name)));
        assert_eq!(MACHINES.iter().filter(|machine| machine.is_plain()).count(), 1);
    }
}
