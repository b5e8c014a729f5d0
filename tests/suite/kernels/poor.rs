//! Kernels and users made poor on purpose: what the doctor says, with the way out, is what
//! the agent then does, and it sees what can be seen.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leaf_tests::agent::command_of;
use leaf_tests::daemon::Daemon;
use leaf_tests::launch::{AS_NOBODY, ForEveryone, WITHOUT_TRACEFS};
use leaf_tests::place::Folder;
use leaf_tests::skip::{is_root, kernel_version, require};
use leaf_tests::told::tell;
use leaf_tests::watch::{close_first, connect, listen, read_exactly};
use leaf_tests::workload::Truth;
use serde_json::Value;

use crate::ladder::{PATIENCE, best, in_matrix, lockdown};

/// In a mount namespace of its own, where kernel BTF is hidden. With tracefs.
const WITHOUT_BTF: &[&str] = &[
    "unshare",
    "--mount",
    "sh",
    "-c",
    "mount -t tmpfs none /sys/kernel/btf && { mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null; exec \"$@\"; }",
    "sh",
];

/// Root without any capability.
const WITHOUT_CAPABILITIES: &[&str] = &["setpriv", "--bounding-set=-all", "--inh-caps=-all"];

/// What a room is expected to do somewhere.
struct Expected {
    room: &'static str,
    /// The rung that it takes.
    source: &'static str,
    /// Part of the doctor's cause for something better, and part of the way out; empty: there is none.
    cause: &'static str,
    way_out: &'static str,
}

/// The doctor's report, held against `expected`; then the agent, held against the report.
fn assert_rooms_take(name: &str, launcher: &[&str], env: &[(&str, &str)], expected: &[Expected]) -> Result<()> {
    let copy = ForEveryone::new()?;
    let doctor = command_of(&copy.path(), launcher, &["doctor", "--json"], env).output()?;
    ensure!(doctor.status.success(), "the doctor failed: {}", String::from_utf8_lossy(&doctor.stderr));
    let report: Value = serde_json::from_slice(&doctor.stdout)?;
    for Expected { room, source, cause, way_out } in expected {
        let of_room = report["rooms"].as_array().context("rooms")?.iter().find(|of| of["room"] == *room);
        let of_room = of_room.context("no such room")?;
        assert_eq!(of_room["source"], *source, "{of_room:#}");
        let hooks = of_room["hooks"].as_array().into_iter().flatten();
        let refusals: Vec<&Value> = hooks
            .flat_map(|hook| hook["refused"].as_array().into_iter().flatten())
            .chain(of_room.get("refused"))
            .collect();
        let part =
            |refusal: &Value, field: &str, part: &str| refusal[field].as_str().is_some_and(|text| text.contains(part));
        let is_told = refusals.iter().any(|refusal| part(refusal, "cause", cause) && part(refusal, "way_out", way_out));
        assert!(cause.is_empty() || is_told, "{cause:?} and {way_out:?} are not in {of_room:#}");
        tell(&["poor", name, room, source]);
    }
    let polls = [("LEAF_ROOMS_PROCESS_POLL_INTERVAL", "100ms"), ("LEAF_ROOMS_NETWORK_POLL_INTERVAL", "100ms")];
    let env: Vec<_> = env.iter().copied().chain(polls).collect();
    let folder = Folder::new("poor")?;
    let arguments = ["run", "--exporter", "console", "--format", "json"];
    let mut agent = Daemon::start("agent", command_of(&copy.path(), launcher, &arguments, &env), folder.path())?;
    for Expected { room, source, .. } in expected {
        let said = match *source {
            "procfs" => format!("{room}: no eBPF"),
            source => format!("{room}: watching by {source}"),
        };
        agent.wait_until(&said, PATIENCE, |agent| agent.stderr().contains(&said))?;
    }
    // So that it has looked once.
    std::thread::sleep(Duration::from_millis(500));
    let (listener, port) = listen()?;
    let (mut client, mut server) = connect(&listener)?;
    std::io::Write::write_all(&mut client, &[0; 3000])?;
    read_exactly(&mut server, 3000)?;
    let lived = Truth::of(Command::new("/bin/sleep").arg("1"), |_| {})?;
    close_first(client, server)?;
    std::thread::sleep(Duration::from_millis(800));
    agent.signal(rustix::process::Signal::TERM)?;
    ensure!(agent.wait(PATIENCE)?.success(), "the agent failed: {}", agent.stderr());
    let events: Vec<Value> =
        agent.stdout().lines().map(|line| Ok(serde_json::from_str(line)?)).collect::<Result<_>>()?;
    let seen = |kind: &str, field: &str, value: u64| {
        events.iter().filter(|event| event["data"]["type"] == kind && event["data"][field] == value).count()
    };
    for Expected { room, .. } in expected {
        let counts = match *room {
            "process" => {
                ["process_fork", "process_exec", "process_exit"].map(|kind| seen(kind, "pid", lived.pid.into()))
            }
            _ => [1, seen("tcp_close", "sent_bytes", 3000), seen("tcp_close", "received_bytes", 3000)],
        };
        ensure!(counts == [1; 3], "{room}: {counts:?} of port {port} and process {} in {events:#?}", lived.pid);
    }
    Ok(())
}

#[test]
fn without_kernel_btf() -> Result<()> {
    if !require(is_root(), "eBPF takes root") {
        return Ok(());
    }
    const CAUSE: &str = "failed to read /sys/kernel/btf/vmlinux";
    const WAY_OUT: &str = "CONFIG_DEBUG_INFO_BTF";
    let expected = [
        Expected { room: "process", source: "tracepoint", cause: CAUSE, way_out: WAY_OUT },
        Expected { room: "network", source: "procfs", cause: CAUSE, way_out: WAY_OUT },
    ];
    assert_rooms_take("no kernel BTF", WITHOUT_BTF, &[], &expected)
}

const PRIVILEGE: &str = "run as root, or give the agent CAP_BPF and CAP_PERFMON";

/// The kernel's first refusal of someone without capabilities.
fn both_refused() -> [Expected; 2] {
    ["process", "network"].map(|room| Expected { room, source: "procfs", cause: "not permitted", way_out: PRIVILEGE })
}

#[test]
fn without_capabilities() -> Result<()> {
    if !require(is_root(), "to give up capabilities takes root") {
        return Ok(());
    }
    assert_rooms_take("root without capabilities", WITHOUT_CAPABILITIES, &[], &both_refused())
}

#[test]
fn an_ordinary_user() -> Result<()> {
    if !require(is_root(), "to become an ordinary user takes root") {
        return Ok(());
    }
    assert_rooms_take("an ordinary user", &AS_NOBODY, &[], &both_refused())
}

#[test]
fn without_tracefs() -> Result<()> {
    if !require(is_root(), "eBPF takes root") {
        return Ok(());
    }
    let best = best("network")?;
    let expected = [
        Expected { room: "process", source: "tp_btf", cause: "", way_out: "" },
        Expected { room: "network", source: best, cause: "", way_out: "" },
    ];
    assert_rooms_take("no tracefs", &WITHOUT_TRACEFS, &[], &expected)?;
    const CAUSE: &str = "tracefs is not mounted";
    const WAY_OUT: &str = "mount -t tracefs tracefs /sys/kernel/tracing";
    let env = [("LEAF_ROOMS_PROCESS_RUNG", "tracepoint"), ("LEAF_ROOMS_NETWORK_RUNG", "tracepoint")];
    let expected =
        ["process", "network"].map(|room| Expected { room, source: "procfs", cause: CAUSE, way_out: WAY_OUT });
    assert_rooms_take("no tracefs, classic tracepoints forced", &WITHOUT_TRACEFS, &env, &expected)
}

/// With the capabilities that the doctor asks for in Kubernetes, where only root's
/// CAP_SYS_ADMIN may open perf events (a level of Debian's and others').
#[test]
fn with_the_capabilities_of_the_pod_and_perf_event_paranoid_at_3() -> Result<()> {
    if !require(is_root(), "eBPF takes root") {
        return Ok(());
    }
    let context = leaf_tests::agent::command(&[], &["doctor", "--security-context", "--json"], &[])?.output()?;
    let context: Value = serde_json::from_slice(&context.stdout)?;
    let needed = context["container"].as_array().with_context(|| format!("{context:#}"))?;
    let names = needed.iter().filter_map(|need| need["capability"].as_str()?.strip_prefix("CAP_"));
    let added: Vec<String> = names.map(|name| format!(",+{}", name.to_lowercase())).collect();
    let bounding = format!("--bounding-set=-all{}", added.concat());
    // Not on a machine that is somebody's.
    let setting = in_matrix().then(|| Restored::set("/proc/sys/kernel/perf_event_paranoid", "3")).transpose()?;
    let best = best("network")?;
    let expected = [
        Expected { room: "process", source: "tp_btf", cause: "", way_out: "" },
        Expected { room: "network", source: best, cause: "", way_out: "" },
    ];
    assert_rooms_take("the pod's capabilities, perf_event_paranoid 3", &["setpriv", &bounding], &[], &expected)?;
    // Elsewhere 3 is as 2, and CAP_PERFMON is enough.
    if in_matrix() {
        let env = [("LEAF_ROOMS_PROCESS_RUNG", "tracepoint"), ("LEAF_ROOMS_NETWORK_RUNG", "kprobe")];
        let expected = ["process", "network"].map(|room| Expected {
            room,
            source: "procfs",
            cause: "perf_event_open",
            way_out: "sysctl kernel.perf_event_paranoid=2",
        });
        assert_rooms_take(
            "the same, classic tracepoints and kprobes forced",
            &["setpriv", &bounding],
            &env,
            &expected,
        )?;
    }
    drop(setting);
    Ok(())
}

/// In the machine of the matrix that is booted with `lockdown=confidentiality`, and nowhere else:
/// that takes from programs what reads memory by addresses, kprobes and tracefs.
#[test]
fn lockdown_confidentiality() -> Result<()> {
    let is_meant = fs::read_to_string("/proc/cmdline")?.contains("lockdown=confidentiality");
    if !is_meant || !in_matrix() {
        return Ok(());
    }
    assert_eq!(lockdown().as_deref(), Some("confidentiality"));
    const CAUSE: &str = "locked down";
    let typed = kernel_version()? >= (5, 12);
    let network = match typed {
        true => Expected { room: "network", source: "tp_btf", cause: "", way_out: "" },
        false => Expected { room: "network", source: "procfs", cause: CAUSE, way_out: "lockdown=integrity" },
    };
    let process = Expected { room: "process", source: "procfs", cause: CAUSE, way_out: "lockdown=integrity" };
    assert_rooms_take("lockdown=confidentiality", &[], &[], &[process, network])
}

/// A setting of the kernel's that is put back.
struct Restored {
    path: &'static str,
    old: String,
}

impl Restored {
    fn set(path: &'static str, value: &str) -> Result<Self> {
        let old = fs::read_to_string(path)?;
        fs::write(path, value).with_context(|| format!("failed to write {path}"))?;
        Ok(Self { path, old })
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        let _ = fs::write(self.path, &self.old);
    }
}
