//! Where things are: the workspace, its target folder, the tools that setup brings.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::shell;

/// The packages that build for the machine; `agent-ebpf` builds for the BPF target only.
pub const HOST_PACKAGES: [&str; 4] = ["agent", "agent-common", "xtask", "leaf-tests"];

/// Paths of the workspace that this xtask was built from.
#[derive(Debug)]
pub struct Workspace {
    /// The folder of the root `Cargo.toml`.
    pub root: PathBuf,
}

impl Workspace {
    /// The workspace that `cargo xtask` was called in.
    pub fn find() -> Result<Self> {
        // Read at run time, not with `env!`: a target folder may outlive a move of the clone.
        let manifest =
            env::var_os("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR is not set: start this as `cargo xtask`")?;
        let root = Path::new(&manifest).parent().context("xtask is not inside a workspace")?;
        Ok(Self { root: root.to_owned() })
    }

    /// What setup brings. Always here, whatever `CARGO_TARGET_DIR` says, so that
    /// the build script of `agent` and every target folder find the same tools.
    pub fn tools(&self) -> PathBuf {
        self.root.join("target/tools")
    }

    /// The folder that cargo builds into, from the environment or any of its configuration files.
    pub fn target(&self) -> Result<PathBuf> {
        let metadata = shell::capture(self.cargo().args(["metadata", "--no-deps", "--format-version=1"]))?;
        target_directory(&metadata)
    }

    /// The agent's binary, as built by [`Self::build_agent`].
    pub fn agent(&self) -> Result<PathBuf> {
        Ok(self.target()?.join("release/agent"))
    }

    /// Builds the agent as it is shipped.
    ///
    /// # Errors
    /// If it does not compile; the compiler has said why on stderr.
    pub fn build_agent(&self) -> Result<PathBuf> {
        shell::run(self.cargo().args(["build", "--release", "--package", "agent"]))?;
        self.agent()
    }

    /// A call of the cargo that called us, in the workspace's root.
    pub fn cargo(&self) -> Command {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(&self.root);
        cargo
    }
}

/// Is this a continuous integration run? There, nothing may be skipped.
pub fn is_ci() -> bool {
    env::var("CI").is_ok_and(|value| says_yes(&value))
}

fn says_yes(value: &str) -> bool {
    !matches!(value.trim().to_ascii_lowercase().as_str(), "" | "0" | "false" | "no")
}

fn target_directory(metadata: &str) -> Result<PathBuf> {
    let metadata: Value = serde_json::from_str(metadata).context("`cargo metadata` is no JSON")?;
    let folder = metadata["target_directory"].as_str().context("`cargo metadata` names no target_directory")?;
    Ok(folder.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_folder_is_the_one_that_cargo_names() {
        let folder = target_directory(r#"{"packages":[],"target_directory":"/elsewhere"}"#);
        assert_eq!(folder.expect("valid"), Path::new("/elsewhere"));
        assert!(target_directory("{}").is_err());
        assert!(target_directory("no json").is_err());
    }

    #[test]
    fn ci_is_on_unless_it_says_no() {
        for yes in ["true", "1", "github"] {
            assert!(says_yes(yes), "{yes}");
        }
        for no in ["", "0", "false", "False", "no"] {
            assert!(!says_yes(no), "{no}");
        }
    }
}
