//! rust-src: the source of `core`, which is compiled for the BPF target with the programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, anyhow};

use super::{Step, debian};
use crate::shell;
use crate::toolchain::{Toolchain, find_program, library};
use crate::workspace::Workspace;

/// rust-src in the sysroot of the toolchain that the build script of `agent` uses.
#[derive(Debug)]
pub struct RustSrc<'a> {
    toolchain: &'a Toolchain,
    sysroot: PathBuf,
    tools: PathBuf,
}

impl<'a> RustSrc<'a> {
    pub fn new(workspace: &Workspace, toolchain: &'a Toolchain) -> Result<Self> {
        let sysroot = toolchain.sysroot()?;
        Ok(Self { toolchain, sysroot, tools: workspace.tools() })
    }
}

impl Step for RustSrc<'_> {
    fn what(&self) -> String {
        format!("rust-src for {}", self.toolchain.name)
    }

    fn why(&self) -> &'static str {
        "from which `core` is compiled for eBPF"
    }

    fn place(&self) -> PathBuf {
        library(&self.sysroot)
    }

    fn is_ready(&self) -> bool {
        Toolchain::has_rust_src(&self.sysroot)
    }

    fn install(&self) -> Result<()> {
        let refused = match with_rustup(&self.toolchain.name) {
            Ok(()) => return Ok(()),
            Err(refused) => refused,
        };
        eprintln!("setup: no rust-src by rustup ({refused:#}); trying Debian's package");
        from_debian(self.toolchain, &self.tools, &self.place()).map_err(|error| {
            anyhow!(
                "neither rustup nor Debian has it ({error:#}). With a connection to rustup's \
                 server run `rustup component add rust-src --toolchain {}`; where Rust came \
                 from a distribution, install its package rust-src of the same version",
                self.toolchain.name
            )
        })
    }
}

fn with_rustup(toolchain: &str) -> Result<()> {
    find_program("rustup").context("there is no rustup")?;
    let output = Command::new("rustup")
        .args(["component", "add", "rust-src", "--toolchain", toolchain])
        .env("RUST_BACKTRACE", "0")
        .output()
        .context("cannot start rustup")?;
    if output.status.success() {
        return Ok(());
    }
    Err(anyhow!("{}", reason(&String::from_utf8_lossy(&output.stderr))))
}

/// The line with the error in what rustup wrote, else the first line.
fn reason(stderr: &str) -> &str {
    let lines = || stderr.lines().map(str::trim).filter(|line| !line.is_empty());
    lines().find(|line| line.starts_with("error")).or_else(|| lines().next()).unwrap_or("it gave no reason")
}

/// Takes the library folder out of Debian's package for the same compiler and puts
/// it in `destination`. The package is not installed: it would bring Debian's rustc.
fn from_debian(toolchain: &Toolchain, tools: &Path, destination: &Path) -> Result<()> {
    let version = shell::capture(toolchain.rustc().arg("--version"))?;
    let version = release(&version).with_context(|| format!("no version in {version:?}"))?;
    let unpacked = debian::unpack(&tools.join("build/rust-src"), "rust-src", version)?;
    let source = unpacked.join(format!("usr/src/rustc-{version}/library"));
    copy(&source, destination)?;
    // Only space is lost if it stays.
    let _ = fs::remove_dir_all(unpacked);
    Ok(())
}

/// `1.95.0` of `rustc 1.95.0 (59807616e 2026-04-14)`.
fn release(version: &str) -> Option<&str> {
    version.split_whitespace().nth(1)
}

fn copy(source: &Path, destination: &Path) -> Result<()> {
    let parent = destination.parent().context("destination is a root")?;
    let partial = destination.with_extension("partial");
    let named =
        || format!("cannot write {}: it belongs to the Rust toolchain, run setup as its owner", destination.display());
    fs::create_dir_all(parent).with_context(named)?;
    for old in [&partial, destination] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(named)?;
        }
    }
    shell::capture(Command::new("cp").arg("-r").arg(source).arg(&partial))?;
    fs::rename(&partial, destination).with_context(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_the_second_word_of_rustc() {
        assert_eq!(release("rustc 1.95.0 (59807616e 2026-04-14)"), Some("1.95.0"));
        assert_eq!(release("rustc"), None);
    }

    #[test]
    fn the_reason_of_rustup_is_its_error_line() {
        let stderr = "info: downloading component rust-src\nerror: could not download file\n   0: main\n";
        assert_eq!(reason(stderr), "error: could not download file");
        assert_eq!(reason("panicked\nat main"), "panicked");
        assert_eq!(reason("\n"), "it gave no reason");
    }

    #[test]
    fn a_copy_replaces_what_an_older_one_left() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let (source, destination) = (root.path().join("library"), root.path().join("to/library"));
        fs::create_dir_all(source.join("core")).expect("a folder");
        fs::write(source.join("Cargo.lock"), "new").expect("a file");
        fs::create_dir_all(destination.join("old")).expect("a folder");
        copy(&source, &destination).expect("copies");
        assert!(destination.join("core").is_dir());
        assert!(!destination.join("old").exists());
        let lock = fs::read_to_string(destination.join("Cargo.lock")).expect("copied");
        assert_eq!(lock, "new");
    }

    /// Loads some megabytes from Debian.
    #[test]
    #[ignore = "needs Debian's package server; CI runs it"]
    fn debian_has_the_source_of_this_compiler() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let workspace = Workspace::find().expect("called by cargo");
        let toolchain = Toolchain::of_workspace(&workspace.root).expect("a toolchain");
        from_debian(&toolchain, root.path(), &library(root.path())).expect("Debian has it");
        assert!(Toolchain::has_rust_src(root.path()));
    }
}
