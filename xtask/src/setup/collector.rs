//! A stock OpenTelemetry Collector with the components of `otel-collector-builder.yaml`.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::Step;
use super::programs::{GO, Program};
use super::stamp::{Stamp, fingerprint};
use crate::shell;
use crate::workspace::Workspace;

const BUILDER: &str = "go.opentelemetry.io/collector/cmd/builder";
const BUILDER_VERSION: &str = "v0.158.0";
const MANIFEST: &str = "otel-collector-builder.yaml";
const BINARY: &str = "otelcol-leaf";

/// The first Go that fetches a newer one by itself where a module asks for it.
const OLDEST_GO: (u32, u32) = (1, 21);

/// The program that builds collectors, in target/tools/bin.
#[derive(Debug)]
pub struct CollectorBuilder {
    tools: PathBuf,
    stamp: Stamp,
}

impl CollectorBuilder {
    pub fn new(workspace: &Workspace) -> Self {
        let tools = workspace.tools();
        Self { stamp: Stamp::new(&tools, "collector-builder", BUILDER_VERSION), tools }
    }
}

impl Step for CollectorBuilder {
    fn what(&self) -> String {
        format!("OpenTelemetry Collector Builder {BUILDER_VERSION}")
    }

    fn why(&self) -> &'static str {
        "which builds the collector (half a minute)"
    }

    fn place(&self) -> PathBuf {
        self.tools.join("bin/builder")
    }

    fn needs(&self) -> &'static [Program] {
        GO
    }

    fn is_ready(&self) -> bool {
        self.stamp.is_current() && self.place().is_file()
    }

    fn install(&self) -> Result<()> {
        let version = shell::capture(Command::new("go").args(["env", "GOVERSION"]))?;
        if go_version(&version).is_some_and(|version| version < OLDEST_GO) {
            let (major, minor) = OLDEST_GO;
            bail!(
                "{} is too old: install Go {major}.{minor} or newer, which fetches the version \
                 that the collector needs",
                version.trim()
            );
        }
        shell::capture(
            Command::new("go")
                .args(["install", &format!("{BUILDER}@{BUILDER_VERSION}")])
                .env("GOBIN", self.tools.join("bin")),
        )?;
        self.stamp.write()
    }
}

/// `(1, 26)` of `go1.26.8`; nothing of a development version.
fn go_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim().strip_prefix("go")?.split('.');
    let major = numbers.next()?.parse().ok()?;
    let minor = numbers.next()?;
    let digits = minor.find(|c: char| !c.is_ascii_digit());
    let minor = minor[..digits.unwrap_or(minor.len())].parse().ok()?;
    Some((major, minor))
}

/// The collector, in target/tools/collector: a folder per manifest, so that a change
/// of branches does not build it again, and a link to the current one.
#[derive(Debug)]
pub struct Collector {
    tools: PathBuf,
    manifest: String,
}

impl Collector {
    pub fn new(workspace: &Workspace) -> Result<Self> {
        let path = workspace.root.join(MANIFEST);
        let manifest = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { tools: workspace.tools(), manifest })
    }

    fn folder(&self) -> PathBuf {
        self.tools.join("collector")
    }

    fn version(&self) -> String {
        fingerprint(&format!("{BUILDER_VERSION}\n{}", self.manifest))
    }

    /// Relative to [`Self::folder`].
    fn binary(&self) -> PathBuf {
        PathBuf::from(self.version()).join(BINARY)
    }

    fn build(&self) -> Result<()> {
        let sources = self.tools.join("build/collector");
        if sources.exists() {
            fs::remove_dir_all(&sources)?;
        }
        fs::create_dir_all(&sources)?;
        let manifest = sources.join("manifest.yaml");
        let output = sources.join("output");
        let text = with_output_path(&self.manifest, &output.display().to_string())
            .with_context(|| format!("{MANIFEST} has no output_path"))?;
        fs::write(&manifest, text)?;
        let mut flags = env::var("GOFLAGS").unwrap_or_default();
        // The sources lie inside our repository: Go would ask git about it, which fails
        // in a clone that belongs to another user.
        flags.push_str(" -buildvcs=false");
        let mut builder = Command::new(self.tools.join("bin/builder"));
        builder.arg("--config").arg(&manifest);
        builder.env("GOFLAGS", flags.trim_start());
        shell::run_on_stderr(&mut builder)?;
        fs::create_dir_all(self.folder().join(self.version()))?;
        fs::rename(output.join(BINARY), self.folder().join(self.binary())).context("the builder left no binary")?;
        // Only space is lost if it stays.
        let _ = fs::remove_dir_all(sources);
        Ok(())
    }

    /// Replaces the link at once: a test that starts meanwhile finds the old or the new one.
    fn link(&self) -> Result<()> {
        let fresh = self.folder().join(".link");
        let _ = fs::remove_file(&fresh);
        symlink(self.binary(), &fresh)?;
        fs::rename(&fresh, self.place()).with_context(|| format!("cannot write {}", self.place().display()))
    }
}

impl Step for Collector {
    fn what(&self) -> String {
        format!("OpenTelemetry Collector of {MANIFEST}")
    }

    fn why(&self) -> &'static str {
        "which tests send to (two minutes or more)"
    }

    fn place(&self) -> PathBuf {
        self.folder().join(BINARY)
    }

    fn needs(&self) -> &'static [Program] {
        GO
    }

    fn is_ready(&self) -> bool {
        self.place().is_file() && fs::read_link(self.place()).is_ok_and(|target| target == self.binary())
    }

    fn install(&self) -> Result<()> {
        if !self.folder().join(self.binary()).is_file() {
            self.build()?;
        }
        self.link()
    }
}

/// The manifest with another `output_path`; the builder has no flag for it.
fn with_output_path(manifest: &str, path: &str) -> Option<String> {
    const KEY: &str = "output_path:";
    let line = manifest.lines().find(|line| line.trim_start().starts_with(KEY))?;
    let indent = &line[..line.len() - line.trim_start().len()];
    Some(manifest.replacen(line, &format!("{indent}{KEY} {path}"), 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_output_path_of_the_manifest_is_replaced() {
        let manifest = "dist:\n  name: otelcol-leaf\n  output_path: ./target/collector\n\nreceivers:\n";
        assert_eq!(
            with_output_path(manifest, "/elsewhere").as_deref(),
            Some("dist:\n  name: otelcol-leaf\n  output_path: /elsewhere\n\nreceivers:\n")
        );
        assert_eq!(with_output_path("dist:\n", "/elsewhere"), None);
    }

    #[test]
    fn go_versions_are_compared_by_their_numbers() {
        assert_eq!(go_version("go1.26.8\n"), Some((1, 26)));
        assert_eq!(go_version("go1.19"), Some((1, 19)));
        assert_eq!(go_version("go1.27rc1"), Some((1, 27)));
        assert_eq!(go_version("devel go1.28-abcdef"), None);
        assert!(go_version("go1.9").expect("a version") < OLDEST_GO);
    }

    #[test]
    fn another_manifest_is_another_collector() {
        let collector = |manifest: &str| Collector { tools: "/tools".into(), manifest: manifest.into() };
        assert_ne!(collector("a").version(), collector("b").version());
        assert_eq!(collector("a").version(), collector("a").version());
    }
}
