//! Compiles the eBPF programs: each `agent-ebpf/src/bin/<room>.rs` becomes an object
//! of its own, `$OUT_DIR/<room>`.
//!
//! aya-build calls a second cargo for the BPF target. It needs rust-src (there is no
//! prebuilt `core`) and bpf-linker; `cargo xtask setup` brings both.

#[path = "../xtask/src/toolchain.rs"]
mod toolchain;

use std::env;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use aya_build::Package;

use crate::toolchain::{Toolchain, find_program};

/// What the programs are made of, relative to the root: cargo runs this again when one changes.
const SOURCES: [&str; 4] = ["agent-ebpf", "agent-common", "Cargo.lock", "rust-toolchain.toml"];

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        // Not `fn main() -> Result`: it would add a backtrace to a plain message.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<()> {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").context("not called by cargo")?;
    let root = Path::new(&manifest).parent().context("the crate `agent` is not inside its workspace")?;
    for source in SOURCES {
        println!("cargo:rerun-if-changed={}", root.join(source).display());
    }
    set_environment(&root.join("target/tools/bin"))?;
    let toolchain = Toolchain::of_workspace(root)?;
    require_tools(&toolchain)?;
    let programs = root.join("agent-ebpf");
    aya_build::build_ebpf(
        [Package {
            name: "agent-ebpf",
            root_dir: programs.to_str().context("the workspace's path is not UTF-8")?,
            ..Package::default()
        }],
        aya_build::Toolchain::Custom(&toolchain.name),
    )
    .context("the eBPF programs do not compile")
}

/// aya-build gives its cargo our environment, so what that needs is set here.
fn set_environment(tools: &Path) -> Result<()> {
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths([tools.to_owned()].into_iter().chain(env::split_paths(&path)))
        .with_context(|| format!("{} cannot be in PATH", tools.display()))?;
    // SAFETY: this process has one thread until aya-build starts its own.
    unsafe {
        env::set_var("PATH", path);
        // `-Z build-std` on a stable compiler.
        env::set_var("RUSTC_BOOTSTRAP", "1");
        // Else each line of progress becomes a warning of this crate.
        env::set_var("CARGO_TERM_QUIET", "true");
    }
    Ok(())
}

fn require_tools(toolchain: &Toolchain) -> Result<()> {
    const WAY_OUT: &str = "run `cargo xtask setup`, which installs what is missing";
    if env::var_os("AYA_BUILD_SKIP").is_some() {
        return Ok(());
    }
    let sysroot = toolchain.sysroot()?;
    if !Toolchain::has_rust_src(&sysroot) {
        bail!(
            "cannot build the eBPF programs: toolchain {} has no rust-src in {}; {WAY_OUT}",
            toolchain.name,
            sysroot.display()
        );
    }
    match find_program("bpf-linker") {
        Some(linker) => println!("cargo:rerun-if-changed={}", linker.display()),
        None => bail!("cannot build the eBPF programs: no bpf-linker in PATH; {WAY_OUT}"),
    }
    Ok(())
}
