//! A test whose tier is not there says so. It does not pass in silence, and where
//! everything must be there (`LEAF_TESTS_REQUIRE_ALL=1`) it fails.

use std::fs::OpenOptions;
use std::io::Write;

use anyhow::{Context as _, Result};

/// Whether the test can go on; if not, it returns at once:
///
/// ```ignore
/// if !require(is_root(), "loading programs needs root") {
///     return Ok(());
/// }
/// ```
///
/// A skip is printed, and added as a line to the file that `LEAF_SKIP_FILE` names.
///
/// # Panics
/// If the condition is false and `LEAF_TESTS_REQUIRE_ALL` is `1`.
#[must_use]
pub fn require(condition: bool, reason: &str) -> bool {
    if condition {
        return true;
    }
    // The test runner names each thread after its test.
    let thread = std::thread::current();
    let line = format!("SKIPPED {}: {reason}", thread.name().unwrap_or("a test"));
    assert!(
        std::env::var("LEAF_TESTS_REQUIRE_ALL").as_deref() != Ok("1"),
        "{line} (and LEAF_TESTS_REQUIRE_ALL=1 allows no skip)"
    );
    // Not by a macro: the test runner would hide it, since the test passes.
    let _ = writeln!(std::io::stderr(), "{line}");
    if let Some(path) = std::env::var_os("LEAF_SKIP_FILE") {
        let written =
            OpenOptions::new().create(true).append(true).open(&path).and_then(|mut file| writeln!(file, "{line}"));
        if let Err(error) = written {
            panic!("failed to add to {}: {error}", path.display());
        }
    }
    false
}

/// Whether we are root.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The kernel's version: `(6, 1)` of `6.1.0-50-cloud-amd64`.
///
/// # Errors
/// Without procfs, or if the release does not begin with two numbers.
pub fn kernel_version() -> Result<(u32, u32)> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut parts = release.split(['.', '-']).map_while(|part| part.parse().ok());
    Ok((parts.next().context("a version")?, parts.next().context("a version")?))
}

/// Whether a program is there, see [`program`](crate::place::program).
#[must_use]
pub fn has_program(name: &str) -> bool {
    crate::place::program(name).is_some()
}
