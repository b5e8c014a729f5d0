//! Small programs that are compiled when a test first needs them.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::place::{self, Folder};

/// A Rust program linked statically, so that it runs where there are no libraries.
/// Built once for each version of its source.
///
/// # Errors
/// If it does not compile or cannot be kept.
pub fn program(name: &str, source: &str) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    source.hash(&mut hasher);
    let kept = place::tool("programs");
    let path = kept.join(format!("{name}-{:016x}", hasher.finish()));
    if path.is_file() {
        return Ok(path);
    }
    let folder = Folder::new(name)?;
    let (file, built) = (folder.path().join("program.rs"), folder.path().join(name));
    fs::write(&file, source)?;
    let output = Command::new("rustc")
        .args(["--edition", "2024", "-O", "-C", "strip=symbols", "-C", "target-feature=+crt-static"])
        .arg("-o")
        .args([&built, &file])
        .output()
        .context("failed to start rustc")?;
    ensure!(output.status.success(), "failed to build {name}: {}", String::from_utf8_lossy(&output.stderr));
    fs::create_dir_all(&kept)?;
    // Copied next to its place and renamed: two tests may do this at the same time.
    let copy = path.with_extension(std::process::id().to_string());
    fs::copy(&built, &copy)?;
    fs::rename(&copy, &path)?;
    Ok(path)
}
