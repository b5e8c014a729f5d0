//! What runs in a guest, built for its architecture.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::image::Root;
use super::matrix::{Architecture, Cross};
use crate::setup;
use crate::shell;
use crate::workspace::Workspace;

/// Programs for a guest.
#[derive(Debug)]
pub struct Parts {
    pub agent: PathBuf,
    pub guest: PathBuf,
    pub suite: PathBuf,
    pub workload: PathBuf,
    /// Where its other programs and its libraries come from; `None`: from the host.
    pub root: Option<Root>,
}

impl Parts {
    /// Builds the tests, and the agent if `agent` is none for this architecture. Asks cargo where they are.
    ///
    /// # Errors
    /// If they do not build; the compiler has said why on stderr.
    pub fn build(workspace: &Workspace, agent: &Path, architecture: &Architecture) -> Result<Self> {
        let cargo = |arguments: &[&str]| {
            let mut cargo = workspace.cargo();
            cargo.args(["build", "--release", "--message-format=json-render-diagnostics"]).args(arguments);
            if let Some(cross) = &architecture.cross {
                cross_build(&mut cargo, workspace, cross);
            }
            shell::stdout(&mut cargo)
        };
        let tests = cargo(&["--package=leaf-tests", "--test=kernels", "--bins"])?;
        let (agent, root) = match &architecture.cross {
            None => (agent.to_owned(), None),
            Some(cross) => {
                let readelf = setup::cross_program(workspace, cross, "readelf");
                let root = Root { folder: setup::guest_root(workspace, architecture), triplet: cross.triplet, readelf };
                (built(&cargo(&["--package=agent", "--bin=agent"])?, "agent")?, Some(root))
            }
        };
        let find = |name| built(&tests, name);
        Ok(Self { agent, guest: find("guest")?, suite: find("kernels")?, workload: find("workload")?, root })
    }
}

/// Where cargo says that it has put a program.
fn built(messages: &str, name: &str) -> Result<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut artifacts = messages.filter(|message| message["target"]["name"] == name);
    let executable = artifacts.find_map(|message| message["executable"].as_str().map(PathBuf::from));
    executable.with_context(|| format!("cargo has built no {name}"))
}

/// The standard library is built from rust-src, as `core` is for eBPF: no target needs to be
/// installed. C code and the linking take Debian's cross compiler.
fn cross_build(cargo: &mut Command, workspace: &Workspace, cross: &Cross) {
    let (target, sysroot) = (cross.target, setup::cross_folder(workspace));
    let sysroot = format!("--sysroot={}", sysroot.display());
    let (in_capitals, in_snake_case) = (target.to_uppercase().replace('-', "_"), target.replace('-', "_"));
    let program = |name| setup::cross_program(workspace, cross, name);
    cargo
        .args(["-Z", "build-std=std,panic_abort", "--target", target])
        .env("RUSTC_BOOTSTRAP", "1")
        .env(format!("CARGO_TARGET_{in_capitals}_LINKER"), program("gcc"))
        .env(format!("CARGO_TARGET_{in_capitals}_RUSTFLAGS"), format!("-C link-arg={sysroot}"))
        .env(format!("CC_{in_snake_case}"), program("gcc"))
        .env(format!("CFLAGS_{in_snake_case}"), sysroot)
        .env(format!("AR_{in_snake_case}"), program("ar"));
}
