//! What an agent still may when it watches.

use std::fs;

use anyhow::{Context, Result};
use leaf_tests::agent::AgentProcess;
use leaf_tests::skip::{is_root, kernel_version, require};
use leaf_tests::told::tell;

use crate::ladder::PATIENCE;

/// include/uapi/linux/capability.h
const KEPT: [(&str, u32); 2] = [("CAP_SYS_PTRACE", 19), ("CAP_BPF", 39)];

#[test]
fn an_agent_that_watches_has_given_up_the_rest() -> Result<()> {
    if !require(is_root(), "to give up capabilities takes root") {
        return Ok(());
    }
    let mut agent = AgentProcess::start(&["run", "--exporter", "console", "--format", "json"], &[])?;
    // Said last, so all is done.
    agent.wait_for_stderr("network: watching", PATIENCE)?;
    agent.wait_for_stderr("keeps ", PATIENCE)?;
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
        anyhow::Ok(line.trim_start_matches(':').trim().to_owned())
    };
    assert_eq!((field("NoNewPrivs")?.as_str(), field("Seccomp")?.as_str()), ("1", "2"));
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        let bits = u64::from_str_radix(&field(set)?, 16)?;
        let known = KEPT.iter().fold(0, |bits, (_, bit)| bits | 1u64 << bit);
        assert_eq!(bits & !known, 0, "{set} {bits:x}");
        // From 6.1 on at the latest whoever holds a map may read it.
        assert!(kernel_version()? < (6, 1) || bits >> 39 & 1 == 0, "{set} {bits:x}");
    }
    assert_eq!((field("CapInh")?, field("CapAmb")?), ("0".repeat(16), "0".repeat(16)));
    let effective = u64::from_str_radix(&field("CapEff")?, 16)?;
    let kept: Vec<&str> = KEPT.iter().filter(|(_, bit)| effective >> bit & 1 == 1).map(|(name, _)| *name).collect();
    tell(&["kept", &kept.join(", ")]);
    agent.terminate(PATIENCE)?;
    Ok(())
}
