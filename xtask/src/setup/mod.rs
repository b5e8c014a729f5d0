//! `cargo xtask setup`: brings what the build, the tests and the benchmarks need.
//!
//! To add a part is to write its [`Step`] in a file of its own and to name it in one
//! of the lists below.

mod bpf_linker;
mod collector;
mod debian;
mod kafka;
mod kernel;
mod programs;
mod rust_src;
mod stamp;
mod unpacked;

use std::fs::{self, File, TryLockError};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Error, Result, bail};

use self::bpf_linker::BpfLinker;
use self::collector::{Collector, CollectorBuilder};
use self::kafka::Kafka;
use self::kernel::{GuestRoot, UnpackedKernel};
pub use self::kernel::{folder as kernel_folder, root_folder as guest_root};
use self::programs::{Program, Programs, TEST_PROGRAMS};
use self::rust_src::RustSrc;
use self::unpacked::{ARM64, COMPARED_WITH, CROSS, EMULATOR, TESTED_WITH, Unpacked};
use crate::kernels::Extent;
use crate::kernels::matrix::{Cross, Kernel};
use crate::toolchain::Toolchain;
use crate::workspace::Workspace;

/// Bring the eBPF toolchain, and what tests and benchmarks need.
///
/// Each part is installed once, below target/tools where that is possible; a part that
/// is already there is left alone. Interrupt it at any time and start it again.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also bring an OpenTelemetry Collector, a Kafka broker, runc, iproute2, curl, nginx, socat, nftables and dnsmasq, QEMU and kernels
    #[arg(long)]
    tests: bool,
    /// Also bring what benchmarks compare with and start: bpftrace, libbpf-tools, bpftool, nginx, wrk, iperf3
    #[arg(long)]
    bench: bool,
}

/// One thing to install.
trait Step {
    /// Name and version.
    fn what(&self) -> String;
    /// What for, to complete 'installing X, '.
    fn why(&self) -> &'static str;
    /// Where it goes.
    fn place(&self) -> PathBuf;
    /// Programs that [`Self::install`] calls.
    fn needs(&self) -> &'static [Program] {
        &[]
    }
    /// Is it there, in this version? Asked on each run, so it has to be cheap.
    fn is_ready(&self) -> bool;
    /// Brings it. An interrupted call must leave [`Self::is_ready`] false.
    fn install(&self) -> Result<()>;
}

/// The command `setup`.
pub fn command(workspace: &Workspace, args: &Args) -> Result<()> {
    toolchain(workspace)?;
    let mut failed = Vec::new();
    if args.tests {
        failed.extend(tests(workspace)?);
        failed.extend(kernels(workspace, &crate::kernels::chosen(Extent::Whole, &[])?)?);
    }
    if args.bench {
        failed.extend(bench(workspace)?);
    }
    if !failed.is_empty() {
        print_errors(&failed);
        bail!("{} of the parts could not be installed", failed.len());
    }
    eprintln!("setup: ready");
    Ok(())
}

/// What every build needs.
pub fn toolchain(workspace: &Workspace) -> Result<()> {
    let _lock = lock(workspace)?;
    let toolchain = Toolchain::of_workspace(&workspace.root)?;
    ensure(&RustSrc::new(workspace, &toolchain)?)?;
    ensure(&BpfLinker::new(workspace, &toolchain)?)
}

/// What the tests need.
///
/// # Errors
/// Only if setup cannot work at all. The inner list says what could not be brought:
/// on a developer's machine the tests that need it are skipped.
pub fn tests(workspace: &Workspace) -> Result<Vec<Error>> {
    let _lock = lock(workspace)?;
    Ok(ensure_each(&[
        &Programs(TEST_PROGRAMS),
        &Unpacked::new(workspace, &TESTED_WITH),
        &CollectorBuilder::new(workspace),
        &Collector::new(workspace)?,
        &Kafka::new(workspace),
    ]))
}

/// What these kernels of the matrix need. As for [`tests`].
pub fn kernels(workspace: &Workspace, kernels: &[&'static Kernel]) -> Result<Vec<Error>> {
    let _lock = lock(workspace)?;
    let mut failed = ensure_each(&[&Unpacked::new(workspace, &EMULATOR)]);
    for &kernel in kernels {
        failed.extend(ensure(&UnpackedKernel::new(workspace, kernel)).err());
        if kernel.architecture.cross.is_some() {
            let steps: [&dyn Step; 2] = [&Unpacked::new(workspace, &ARM64), &GuestRoot::new(workspace, kernel)];
            failed.extend(ensure_each(&steps));
        }
    }
    Ok(failed)
}

/// The folder with the headers and libraries of another architecture.
pub fn cross_folder(workspace: &Workspace) -> PathBuf {
    workspace.tools().join(CROSS)
}

/// A program of the cross compiler's: `gcc`.
pub fn cross_program(workspace: &Workspace, cross: &Cross, name: &str) -> PathBuf {
    workspace.tools().join("bin").join(format!("{}-{name}", cross.triplet))
}

/// What the benchmarks compare with. As for [`tests`].
pub fn bench(workspace: &Workspace) -> Result<Vec<Error>> {
    let _lock = lock(workspace)?;
    Ok(ensure_each(&[&Unpacked::new(workspace, &TESTED_WITH), &Unpacked::new(workspace, &COMPARED_WITH)]))
}

/// Says what could not be installed.
pub fn print_errors(errors: &[Error]) {
    for error in errors {
        eprintln!("setup: {error:#}");
    }
}

fn ensure_each(steps: &[&dyn Step]) -> Vec<Error> {
    steps.iter().filter_map(|step| ensure(*step).err()).collect()
}

fn ensure(step: &dyn Step) -> Result<()> {
    if step.is_ready() {
        return Ok(());
    }
    let what = step.what();
    let start = Instant::now();
    programs::ensure(step.needs()).with_context(|| format!("cannot install {what}"))?;
    eprintln!("setup: installing {what}, {}, into {}", step.why(), step.place().display());
    step.install().with_context(|| format!("cannot install {what}"))?;
    if !step.is_ready() {
        bail!("installed {what} without an error, but it is not in {}", step.place().display());
    }
    let took = start.elapsed().as_secs_f64();
    eprintln!("setup: {what} ready in {took:.1} s");
    Ok(())
}

/// Keeps a second `cargo xtask` from installing the same things into the same folders.
fn lock(workspace: &Workspace) -> Result<File> {
    let tools = workspace.tools();
    fs::create_dir_all(&tools).with_context(|| format!("cannot create {}", tools.display()))?;
    let path = tools.join(".lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => {
            eprintln!("setup: another `cargo xtask` is installing, waiting for it");
        }
        // Network file systems may know no locks; a lone setup is safe without.
        Err(TryLockError::Error(_)) => return Ok(file),
    }
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    struct Counted {
        installed: Cell<u32>,
        works: bool,
    }

    impl Step for Counted {
        fn what(&self) -> String {
            "a part".into()
        }
        fn why(&self) -> &'static str {
            "for a test"
        }
        fn place(&self) -> PathBuf {
            "nowhere".into()
        }
        fn is_ready(&self) -> bool {
            self.works && self.installed.get() > 0
        }
        fn install(&self) -> Result<()> {
            self.installed.set(self.installed.get() + 1);
            Ok(())
        }
    }

    #[test]
    fn a_part_that_is_there_is_not_installed_again() {
        let step = Counted { installed: Cell::new(0), works: true };
        ensure(&step).expect("installs");
        ensure(&step).expect("is ready");
        assert_eq!(step.installed.get(), 1);
    }

    #[test]
    fn an_installation_that_leaves_nothing_is_an_error() {
        let step = Counted { installed: Cell::new(0), works: false };
        let error = ensure(&step).expect_err("not ready").to_string();
        assert!(error.contains("not in nowhere"), "{error}");
    }
}
