//! The Rust toolchain that compiles the eBPF programs.
//!
//! Also a module of `agent/build.rs`: rust-src must be in the sysroot of the very
//! toolchain that the build script hands to `rustup run`, so both ask this file.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// A toolchain of rustup's, or the one in PATH where there is no rustup.
#[derive(Debug)]
pub struct Toolchain {
    /// What `rustup run` takes: the running toolchain, else the pinned one.
    pub name: String,
    has_rustup: bool,
}

impl Toolchain {
    /// The toolchain for the workspace in `root`.
    ///
    /// # Errors
    /// If `rust-toolchain.toml` is needed and cannot be read.
    pub fn of_workspace(root: &Path) -> Result<Self> {
        // rustup's cargo tells its children which toolchain they run in.
        let name = match env::var("RUSTUP_TOOLCHAIN") {
            Ok(name) if !name.is_empty() => name,
            _ => pinned(&root.join("rust-toolchain.toml"))?,
        };
        Ok(Self { name, has_rustup: find_program("rustup").is_some() })
    }

    /// The toolchain's folder.
    pub fn sysroot(&self) -> Result<PathBuf> {
        let output = self.rustc().arg("--print=sysroot").output().context("cannot start rustc: is Rust installed?")?;
        if !output.status.success() {
            bail!("toolchain {} has no working rustc: {}", self.name, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().into())
    }

    /// The source of the standard library, if it is installed: eBPF has no
    /// prebuilt `core`, it is compiled with the programs.
    pub fn has_rust_src(sysroot: &Path) -> bool {
        library(sysroot).join("Cargo.lock").is_file()
    }

    /// A call of the toolchain's compiler.
    pub fn rustc(&self) -> Command {
        if self.has_rustup {
            let mut rustup = Command::new("rustup");
            rustup.args(["run", &self.name, "rustc"]);
            rustup
        } else {
            Command::new("rustc")
        }
    }
}

/// Where a toolchain keeps the source of the standard library.
pub fn library(sysroot: &Path) -> PathBuf {
    sysroot.join("lib/rustlib/src/rust/library")
}

/// A program in PATH, or in the folders of root's programs that a user's PATH lacks.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    find_in(name, &path)
}

fn find_in(name: &str, path: &OsStr) -> Option<PathBuf> {
    env::split_paths(path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
}

fn pinned(file: &Path) -> Result<String> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    channel(&text).map(str::to_owned).with_context(|| format!("{} names no channel", file.display()))
}

/// The value of `channel` in the text of a `rust-toolchain.toml`.
fn channel(text: &str) -> Option<&str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once('=')?;
        let value = value.trim_start().strip_prefix('"')?;
        (key.trim() == "channel").then(|| value.split('"').next())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pinned_channel_is_read_past_comments_and_other_keys() {
        let text = "# why\n[toolchain]\nprofile = \"minimal\"\nchannel = \"1.95.0\" # exact\n";
        assert_eq!(channel(text), Some("1.95.0"));
        assert_eq!(channel("[toolchain]\n# channel = none\n"), None);
    }

    #[test]
    fn the_first_folder_of_path_wins() {
        let folders = tempfile::tempdir().expect("a temporary folder");
        for name in ["first", "second"] {
            fs::create_dir(folders.path().join(name)).expect("a folder");
            fs::write(folders.path().join(name).join("tool"), "").expect("a file");
        }
        let path = env::join_paths(["none", "first", "second"].map(|n| folders.path().join(n))).expect("a PATH");
        assert_eq!(find_in("tool", &path), Some(folders.path().join("first/tool")));
        assert_eq!(find_in("leaf-no-such-tool", &path), None);
    }
}
