//! One rung of one room: what the doctor says of it, what then happens, and what is
//! known of kernels that lack it.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leaf_tests::agent::{self, AgentProcess};
use leaf_tests::skip::{is_root, kernel_version, require};
use leaf_tests::told::tell;
use serde_json::Value;

/// For an agent to start or to end: emulated machines are slow.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A rung that a kernel of the matrix does not have, with a part of the cause that the doctor gives.
pub struct Missing {
    room: &'static str,
    rung: &'static str,
    /// On kernels older than this.
    before: (u32, u32),
    cause: &'static str,
}

/// All that is missing in the matrix. What is not listed must hold there.
const MISSING: &[Missing] = &[
    Missing { room: "process", rung: "fentry", before: (5, 11), cause: "invalid func unknown#158" },
    Missing { room: "network", rung: "tp_btf", before: (5, 12), cause: "unknown func bpf_get_socket_cookie" },
    Missing { room: "network", rung: "fentry", before: (5, 12), cause: "unknown func bpf_get_socket_cookie" },
];

/// What a rung of a room is seen to do here: `watched` gets the agent that was made to take
/// it, and ends it. `auto` is the rung that the agent chooses by itself.
pub fn rung(room: &str, rung: &str, watched: impl FnOnce(AgentProcess, &str) -> Result<()>) -> Result<()> {
    if !require(is_root(), "eBPF takes root") {
        return Ok(());
    }
    let variable = format!("LEAF_ROOMS_{}_RUNG", room.to_uppercase());
    let env = [(variable.as_str(), rung)];
    let report = doctor(room, &env)?;
    let source = report["source"].as_str().context("a source")?.to_owned();
    if rung == "auto" && in_matrix() {
        assert_eq!(source, best(room)?, "{report:#}");
    }
    let held = rung == "auto" || source == rung;
    let cause = cause(&report);
    let missing = missing(room, rung)?;
    // Elsewhere a kernel or its policy may lack what it wants; its verifier may refuse nothing.
    let known = missing.map_or(!in_matrix() && !cause.contains("verifier"), |missing| cause.contains(missing.cause));
    ensure!(held || known && !cause.is_empty(), "{room} does not hold by {rung}: {cause}");
    ensure!(missing.is_none() || !held, "{room} holds by {rung}, though it is listed as missing");

    // What the doctor says is what then happens.
    let said = match source.as_str() {
        "procfs" => format!("{room}: no eBPF"),
        source => format!("{room}: watching by {source}"),
    };
    let arguments = ["run", "--exporter", "console", "--format", "json", "--probes", room];
    let env = [env[0], (&format!("LEAF_ROOMS_{}_POLL_INTERVAL", room.to_uppercase()), "100ms")];
    let mut agent = AgentProcess::start(&arguments, &env)?;
    agent.wait_for_stderr(&said, PATIENCE)?;
    if held {
        watched(agent, &source)?;
        tell(&["cell", room, rung, "holds", &source]);
    } else {
        let stderr = agent.terminate(PATIENCE)?.stderr;
        ensure!(stderr.contains(&cause), "the doctor says {cause:?}, the agent {stderr}");
        tell(&["cell", room, rung, "refused", &cause]);
    }
    Ok(())
}

/// The doctor's report of a room.
pub fn doctor(room: &str, env: &[(&str, &str)]) -> Result<Value> {
    let output = agent::command(&[], &["doctor", "--json"], env)?.output()?;
    ensure!(output.status.success(), "the doctor failed: {}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let rooms = report["rooms"].as_array().context("rooms")?;
    rooms.iter().find(|report| report["room"] == room).cloned().context("no such room")
}

/// Why a room does not hold: its own refusal, or that of the first hook that is there no more.
fn cause(report: &Value) -> String {
    let of_room = report["refused"]["cause"].as_str();
    let hooks = report["hooks"].as_array().into_iter().flatten();
    let mut of_hooks =
        hooks.filter(|hook| hook["rung"].is_null()).filter_map(|hook| hook["refused"][0]["cause"].as_str());
    of_room.or_else(|| of_hooks.next()).unwrap_or_default().to_owned()
}

/// The best rung that a room has on a kernel of the matrix that nothing is taken from.
pub fn best(room: &str) -> Result<&'static str> {
    Ok(if missing(room, "tp_btf")?.is_none() { "tp_btf" } else { "raw_tp" })
}

/// What is known of a rung that a room does not have on this kernel.
pub fn missing(room: &str, rung: &str) -> Result<Option<&'static Missing>> {
    let version = kernel_version()?;
    Ok(MISSING.iter().find(|missing| missing.room == room && missing.rung == rung && version < missing.before))
}

/// Is this a program that the verifier of this kernel is known to refuse?
pub fn is_missing_program(name: &str) -> Result<bool> {
    let version = kernel_version()?;
    Ok(MISSING_PROGRAMS.iter().any(|(programs, before)| version < *before && programs.contains(&name)))
}

/// Programs whose helpers older kernels do not have, up to 15 characters of their names.
const MISSING_PROGRAMS: &[(&[&str], (u32, u32))] = &[
    // bpf_get_current_task_btf
    (&["exec_entry", "send_btf", "stall_send_exit", "stall_receive_e"], (5, 11)),
    // bpf_get_socket_cookie
    (&["state_btf", "state_entry"], (5, 12)),
];

/// How far the kernel is locked down: `none`, `integrity` or `confidentiality`.
pub fn lockdown() -> Option<String> {
    let levels = fs::read_to_string("/sys/kernel/security/lockdown").ok()?;
    Some(levels.split_once('[')?.1.split_once(']')?.0.to_owned())
}

/// Is this a machine of the matrix, all of which is known?
pub fn in_matrix() -> bool {
    std::env::var_os("LEAF_MATRIX").is_some()
}
