//! bpf-linker: makes an eBPF object with BTF of what rustc compiled.

use std::fs;
use std::io::{self, IsTerminal as _};
use std::path::PathBuf;

use anyhow::Result;

use super::Step;
use super::stamp::Stamp;
use crate::shell;
use crate::toolchain::Toolchain;
use crate::workspace::Workspace;

const VERSION: &str = "0.10.4";

/// bpf-linker in target/tools/bin.
#[derive(Debug)]
pub struct BpfLinker<'a> {
    workspace: &'a Workspace,
    stamp: Stamp,
}

impl<'a> BpfLinker<'a> {
    pub fn new(workspace: &'a Workspace, toolchain: &Toolchain) -> Result<Self> {
        // It works with the LLVM of the rustc that built it, so another rustc needs another linker.
        let rustc = shell::capture(toolchain.rustc().arg("--version"))?;
        let version = format!("{VERSION} by {}", rustc.trim());
        Ok(Self { workspace, stamp: Stamp::new(&workspace.tools(), "bpf-linker", version) })
    }
}

impl Step for BpfLinker<'_> {
    fn what(&self) -> String {
        format!("bpf-linker {VERSION}")
    }

    fn why(&self) -> &'static str {
        "which links the eBPF programs (about a minute)"
    }

    fn place(&self) -> PathBuf {
        self.workspace.tools().join("bin/bpf-linker")
    }

    fn is_ready(&self) -> bool {
        self.stamp.is_current() && self.place().is_file()
    }

    fn install(&self) -> Result<()> {
        let tools = self.workspace.tools();
        // A target folder of its own: an interrupted build goes on where it stopped,
        // and does not wait for another build of the workspace.
        let build = tools.join("build/bpf-linker");
        let mut cargo = self.workspace.cargo();
        cargo
            .args(["install", "bpf-linker", "--version", VERSION, "--locked"])
            .args(["--force", "--no-track", "--root"])
            .arg(&tools)
            .arg("--target-dir")
            .arg(&build);
        // On a terminal cargo's progress is worth seeing, in a log a hundred lines are not.
        if !io::stderr().is_terminal() {
            cargo.arg("--quiet");
        }
        shell::run_on_stderr(&mut cargo)?;
        // Only space is lost if it stays.
        let _ = fs::remove_dir_all(build);
        self.stamp.write()
    }
}
