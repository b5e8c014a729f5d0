//! `cargo xtask lint`: format, clippy and dependency rules.

use std::env;

use anyhow::{Context as _, Result};

use crate::report::Report;
use crate::toolchain::find_program;
use crate::workspace::{HOST_PACKAGES, Workspace};
use crate::{setup, shell};

/// Check format, clippy and, where cargo-deny is installed, dependencies.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// The command `lint`.
pub fn command(workspace: &Workspace, _: &Args) -> Result<()> {
    // The build script of `agent` runs for clippy, too.
    setup::toolchain(workspace)?;
    let mut report = Report::default();
    parts(workspace, &mut report);
    println!("\nlint:\n{}", report.table().trim_end());
    report.verdict()
}

/// All lints, each a part of a report.
pub fn parts(workspace: &Workspace, report: &mut Report) {
    report.part("format", || shell::run(workspace.cargo().args(["fmt", "--all", "--check"])));
    report.part("clippy", || host(workspace));
    report.part("clippy of agent-ebpf", || ebpf(workspace));
    deny(workspace, report);
}

/// The rules of deny.toml. Not a tool that setup brings: it takes minutes to build.
fn deny(workspace: &Workspace, report: &mut Report) {
    const RULES: &str = "dependencies";
    const ADVISORIES: &str = "advisories";
    if find_program("cargo-deny").is_none() {
        for name in [RULES, ADVISORIES] {
            report.skip(name, "no cargo-deny: `cargo install cargo-deny --locked` brings it");
        }
        return;
    }
    let cargo_deny = |arguments: &[&str]| {
        let mut cargo = workspace.cargo();
        cargo.arg("deny").args(arguments);
        cargo
    };
    report.part(RULES, || shell::run(&mut cargo_deny(&["check", "bans", "licenses", "sources"])));
    match shell::capture(&mut cargo_deny(&["fetch", "db"])) {
        Ok(_) => report.part(ADVISORIES, || shell::run(&mut cargo_deny(&["check", "advisories"]))),
        Err(_) => report.skip(ADVISORIES, "their database is out of reach"),
    }
}

fn host(workspace: &Workspace) -> Result<()> {
    let mut cargo = workspace.cargo();
    // With `--release` the build script's eBPF objects are those of the release build.
    cargo.args(["clippy", "--release", "--all-targets", "--keep-going"]);
    for package in HOST_PACKAGES {
        cargo.args(["--package", package]);
    }
    shell::run(cargo.args(["--", "-D", "warnings"]))
}

fn ebpf(workspace: &Workspace) -> Result<()> {
    let arch = env::consts::ARCH;
    let path = env::var_os("PATH").unwrap_or_default();
    let path = [workspace.tools().join("bin")].into_iter().chain(env::split_paths(&path));
    let path = env::join_paths(path).context("target/tools/bin cannot be in PATH")?;
    let mut cargo = workspace.cargo();
    cargo
        .args(["clippy", "--package=agent-ebpf", "--lib", "--bins", "--release"])
        .args(["--target=bpfel-unknown-none", "-Z", "build-std=core"])
        // Apart, because RUSTC_BOOTSTRAP changes what build scripts find.
        .arg("--target-dir")
        .arg(workspace.target()?.join("lint-ebpf"))
        .args(["--", "-D", "warnings"])
        .env("PATH", path)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", format!("--cfg=bpf_target_arch=\"{arch}\""));
    shell::run(&mut cargo)
}
