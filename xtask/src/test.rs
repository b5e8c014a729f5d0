//! `cargo xtask test`: all tests, with all that they need.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Error, Result, bail};
use clap::ValueEnum;

use crate::kernels::{self, Extent};
use crate::report::Report;
use crate::workspace::{Workspace, is_ci};
use crate::{lint, setup, shell};

/// Run the tests.
///
/// On a developer's machine a test whose collector, broker, program or kernel is
/// missing is skipped, and the summary says so. With CI=true nothing is skipped:
/// the lints run first, and what is missing is a failure.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which tests: those inside the crates, or those that start the real agent
    #[arg(value_enum, default_value_t)]
    tier: Tier,
    /// Only tests whose name contains this
    filter: Option<String>,
    /// Of the kernels only this one; may be given again
    #[arg(long, value_name = "NAME")]
    kernel: Vec<String>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, ValueEnum)]
enum Tier {
    /// In the crates: no privilege, no network
    Unit,
    /// The real agent with a real collector and broker; takes root
    Integration,
    /// The suite `kernels` on each kernel of the matrix, in virtual machines
    Kernels,
    #[default]
    All,
}

impl Tier {
    fn includes(self, other: Self) -> bool {
        self == Self::All || self == other
    }
}

/// The command `test`.
pub fn command(workspace: &Workspace, args: &Args) -> Result<()> {
    let ci = is_ci();
    // By hand and in CI all kernels; as one part of all tests, the oldest and the newest.
    let extent = if ci || args.tier == Tier::Kernels { Extent::Whole } else { Extent::Short };
    setup::toolchain(workspace)?;
    let mut report = Report::default();
    if args.tier.includes(Tier::Integration) {
        bring_parts(setup::tests(workspace)?, ci)?;
    }
    if args.tier.includes(Tier::Kernels) {
        bring_parts(setup::kernels(workspace, &kernels::chosen(extent, &args.kernel)?)?, ci)?;
    }
    if ci {
        lint::parts(workspace, &mut report);
    }
    let mut agent = None;
    report.part("build", || {
        agent = Some(workspace.build_agent()?);
        Ok(())
    });
    if args.tier.includes(Tier::Unit) {
        report.part("unit tests", || unit(workspace, args, ci));
    } else {
        report.skip("unit tests", "not asked for");
    }
    let mut skipped = Vec::new();
    if !args.tier.includes(Tier::Integration) {
        report.skip("integration tests", "not asked for");
    } else if let Some(agent) = &agent {
        let list = workspace.target()?.join("skipped-tests.txt");
        fs::write(&list, "").with_context(|| format!("cannot write {}", list.display()))?;
        report.part("integration tests", || integration(workspace, args, ci, agent, &list));
        skipped = skips(&fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?);
    } else {
        report.skip("integration tests", "there is no agent to test");
    }
    if !args.tier.includes(Tier::Kernels) || args.tier == Tier::All && args.filter.is_some() {
        report.skip("kernels", "not asked for");
    } else if let Some(agent) = &agent {
        report.part("kernels", || kernels::test(workspace, agent, extent, &args.kernel, args.filter.as_deref()));
    } else {
        report.skip("kernels", "there is no agent to test");
    }
    if ci && !skipped.is_empty() {
        report.fail("completeness", format!("{} tests skipped, CI runs them all", skipped.len()));
    }
    print_summary(&report, &skipped);
    report.verdict()
}

fn bring_parts(missing: Vec<Error>, ci: bool) -> Result<()> {
    setup::print_errors(&missing);
    if ci && !missing.is_empty() {
        bail!("{} parts that the tests need could not be installed, and CI skips none", missing.len());
    }
    if !missing.is_empty() {
        eprintln!("setup: going on, tests that need these parts are skipped");
    }
    Ok(())
}

fn unit(workspace: &Workspace, args: &Args, ci: bool) -> Result<()> {
    let mut cargo = workspace.cargo();
    cargo
        .args(["test", "--release", "--no-fail-fast"])
        .args(["--package=agent", "--package=agent-common", "--package=xtask"])
        .args(&args.filter);
    if ci {
        // Those that take a network, too.
        cargo.args(["--", "--include-ignored"]);
    }
    shell::run(&mut cargo)
}

fn integration(workspace: &Workspace, args: &Args, ci: bool, agent: &Path, skipped: &Path) -> Result<()> {
    let mut cargo = workspace.cargo();
    cargo
        .args(["test", "--release", "--no-fail-fast", "--package=leaf-tests"])
        .args(&args.filter)
        // They share the machine's kernel: one test's load is another's events.
        .args(["--", "--test-threads=1"])
        .env("AGENT_BIN", agent)
        .env("LEAF_SKIP_FILE", skipped);
    if ci {
        cargo.arg("--include-ignored").env("LEAF_TESTS_REQUIRE_ALL", "1");
    }
    shell::run(&mut cargo)
}

/// A test that did not run, and why.
#[derive(Debug, PartialEq)]
struct Skip {
    test: String,
    reason: String,
}

/// Reads what the harness wrote: lines `SKIPPED <test>: <reason>`.
fn skips(text: &str) -> Vec<Skip> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("SKIPPED "))
        .map(|line| {
            // Names of tests hold `::`, so the separator is a colon with a space.
            let (test, reason) = line.split_once(": ").unwrap_or((line, "no reason given"));
            Skip { test: test.to_owned(), reason: reason.to_owned() }
        })
        .collect()
}

fn print_summary(report: &Report, skipped: &[Skip]) {
    println!("\ntests:\n{}", report.table().trim_end());
    if skipped.is_empty() {
        return;
    }
    println!("{} skipped:", skipped.len());
    for Skip { test, reason } in skipped {
        println!("    {test}: {reason}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_tests_are_read_with_their_reason() {
        let text = "SKIPPED kafka::events_arrive: no broker: java is missing\n\
                    other output\nSKIPPED network::drop\n";
        assert_eq!(
            skips(text),
            [
                Skip { test: "kafka::events_arrive".into(), reason: "no broker: java is missing".into() },
                Skip { test: "network::drop".into(), reason: "no reason given".into() },
            ]
        );
        assert_eq!(skips(""), []);
    }

    #[test]
    fn all_includes_both_tiers() {
        assert!(Tier::All.includes(Tier::Unit));
        assert!(Tier::All.includes(Tier::Integration));
        assert!(!Tier::Unit.includes(Tier::Integration));
    }
}
