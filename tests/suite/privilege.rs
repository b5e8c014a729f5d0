//! Least privilege: what the agent keeps once it is attached, that this is enough, that the rest is gone, and what the
//! doctor says of it.

use std::collections::BTreeSet;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leaf_tests::agent::{self, AgentProcess, Finished};
use leaf_tests::launch::{AS_NOBODY, ForEveryone, WITHOUT_TRACEFS};
use leaf_tests::ledger::Line;
use leaf_tests::place::{self, Folder};
use leaf_tests::skip::{has_program, is_root, kernel_version, require};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);
const JSON: [&str; 5] = ["run", "--exporter", "console", "--format", "json"];
const ROOT: &str = "eBPF takes root";
const NOBODY: u32 = 65534;

/// Number of a capability, include/uapi/linux/capability.h.
fn bit(capability: &str) -> u64 {
    1 << match capability {
        "CAP_DAC_READ_SEARCH" => 2,
        "CAP_SYS_PTRACE" => 19,
        "CAP_SYS_RESOURCE" => 24,
        "CAP_PERFMON" => 38,
        "CAP_BPF" => 39,
        other => panic!("{other}"),
    }
}

fn bits(capabilities: &[&str]) -> u64 {
    capabilities.iter().map(|capability| bit(capability)).sum()
}

/// Whether bpf() takes CAP_BPF for everything: before 5.19, where it was not taken back by the distribution.
fn may_need_bpf() -> Result<bool> {
    Ok(kernel_version()? < (5, 19))
}

/// A field of the status of each thread, which must be the same in all.
fn of_all_threads(pid: u32, field: &str) -> Result<String> {
    let mut values = BTreeSet::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        values.insert(value.with_context(|| format!("no {field}"))?.trim().to_owned());
    }
    ensure!(values.len() == 1, "{field}: {values:?}");
    values.pop_first().context("no thread")
}

fn set(pid: u32, field: &str) -> Result<u64> {
    Ok(u64::from_str_radix(&of_all_threads(pid, field)?, 16)?)
}

/// All threads hold these and no more, and can get no more.
fn assert_confined_to(pid: u32, capabilities: &[&str]) -> Result<()> {
    let allowed = if may_need_bpf()? { bit("CAP_BPF") } else { 0 };
    for field in ["CapEff", "CapPrm"] {
        assert_eq!(set(pid, field)? & !allowed, bits(capabilities) & !allowed, "{field}");
    }
    assert_eq!((set(pid, "CapInh")?, set(pid, "CapAmb")?), (0, 0));
    for (field, value) in [("NoNewPrivs", "1"), ("Seccomp", "2")] {
        assert_eq!(of_all_threads(pid, field)?, value, "{field}");
    }
    Ok(())
}

/// What the user `nobody` does, while an agent watches.
struct Seen {
    /// Of a shell that was started as /proc/self/exe: only its own link says what it is.
    shell: u32,
    /// Has a connection open.
    client: u32,
    port: u16,
}

/// A shell of `nobody`'s.
fn nobody(script: &str) -> Result<Child> {
    Ok(Command::new(AS_NOBODY[0]).args(&AS_NOBODY[1..]).args(["bash", "-c", script]).stdin(Stdio::piped()).spawn()?)
}

/// A process and a connection of `nobody`'s, accepted by us, that last for `time`.
fn activity(time: Duration) -> Result<Seen> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let port = listener.local_addr()?.port();
    let mut shell = nobody("exec /proc/self/exe -c 'read; exit 3'")?;
    let mut client = nobody(&format!("exec 3<>/dev/tcp/127.0.0.1/{port}; read"))?;
    let (accepted, _): (TcpStream, _) = listener.accept()?;
    std::thread::sleep(time);
    for child in [&mut client, &mut shell] {
        drop(child.stdin.take());
        child.wait()?;
    }
    drop(accepted);
    // An agent that polls must look once more.
    std::thread::sleep(Duration::from_millis(500));
    Ok(Seen { shell: shell.id(), client: client.id(), port })
}

/// The events of an agent whose rooms must have told all of it, of connections by these events.
fn assert_complete(finished: &Finished, seen: &Seen, [client, server]: [&str; 2]) -> Result<()> {
    assert!(finished.status.success(), "{}", finished.stderr);
    for room in ["process events", "network events"] {
        let line = Line::of(&finished.stderr, room)?;
        line.assert_all_delivered();
        assert!(line.attempted > 0, "{}", finished.stderr);
    }
    let data = |line| Ok(serde_json::from_str::<Value>(line)?["data"].take());
    let events: Vec<Value> = finished.stdout.lines().map(data).collect::<Result<_>>()?;
    let of = |pid: u32, kind: &str| {
        let wanted: Vec<_> = events.iter().filter(|event| event["pid"] == pid && event["type"] == kind).collect();
        wanted.last().copied().cloned().with_context(|| format!("no {kind} of {pid} in {events:#?}"))
    };
    let exec = of(seen.shell, "process_exec")?;
    assert_eq!(exec["uid"], NOBODY, "{exec}");
    assert!(exec["filename"].as_str().is_some_and(|name| name.ends_with("/bash")), "{exec}");
    assert!(exec["cmdline"].as_str().is_some_and(|line| line.ends_with("-c read; exit 3")), "{exec}");
    of(seen.shell, "process_exit")?;
    let client = of(seen.client, client)?;
    assert_eq!((&client["uid"], &client["dst_port"]), (&NOBODY.into(), &seen.port.into()), "{client}");
    // The other end is ours, found among the open files of all processes.
    let server = of(std::process::id(), server)?;
    assert_eq!((&server["role"], &server["dst_port"]), (&"server".into(), &seen.port.into()), "{server}");
    Ok(())
}

const BY_EBPF: [&str; 2] = ["tcp_connect", "tcp_accept"];
/// The first look, which only learns what there is, may come after the connection has begun.
const BY_LOOKS: [&str; 2] = ["tcp_close", "tcp_close"];

fn watching(launcher: &[&str], env: &[(&str, &str)]) -> Result<AgentProcess> {
    let mut agent = AgentProcess::start_by(launcher, &JSON, env)?;
    agent.wait_for_stderr("network: ", PATIENCE)?;
    Ok(agent)
}

#[test]
fn an_agent_that_is_attached_keeps_only_what_its_rooms_go_on_to_need() -> Result<()> {
    if !require(is_root(), ROOT) {
        return Ok(());
    }
    let mut agent = watching(&[], &[])?;
    agent.wait_for_stderr("privileges: keeps", PATIENCE)?;
    let seen = activity(Duration::from_secs(3))?;
    assert_confined_to(agent.pid(), &["CAP_SYS_PTRACE"])?;
    assert_eq!(set(agent.pid(), "CapBnd")?, 0);
    assert!(fs::read_dir(format!("/proc/{}/task", agent.pid()))?.count() > 1);
    let finished = agent.terminate(PATIENCE)?;
    assert!(finished.stderr.contains("keeps CAP_SYS_PTRACE (executables"), "{}", finished.stderr);
    assert_eq!(finished.stderr.matches("privileges: ").count(), 1, "{}", finished.stderr);
    assert_complete(&finished, &seen, BY_EBPF)
}

#[test]
fn an_agent_that_polls_keeps_what_reading_proc_takes() -> Result<()> {
    if !require(is_root(), ROOT) {
        return Ok(());
    }
    let env = [
        ("LEAF_ROOMS_PROCESS_RUNG", "procfs"),
        ("LEAF_ROOMS_NETWORK_RUNG", "procfs"),
        ("LEAF_ROOMS_PROCESS_POLL_INTERVAL", "50ms"),
        ("LEAF_ROOMS_NETWORK_POLL_INTERVAL", "50ms"),
    ];
    let mut agent = watching(&[], &env)?;
    agent.wait_for_stderr("privileges: keeps", PATIENCE)?;
    let seen = activity(Duration::from_secs(3))?;
    assert_confined_to(agent.pid(), &["CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"])?;
    assert_complete(&agent.terminate(PATIENCE)?, &seen, BY_LOOKS)
}

#[test]
fn a_room_that_needs_no_capability_leaves_none() -> Result<()> {
    if !require(is_root(), ROOT) {
        return Ok(());
    }
    let mut agent = AgentProcess::start(&[&JSON[..], &["--probes", "network"]].concat(), &[])?;
    agent.wait_for_stderr("privileges: keeps", PATIENCE)?;
    let seen = activity(Duration::from_secs(3))?;
    assert_confined_to(agent.pid(), &[])?;
    let finished = agent.terminate(PATIENCE)?;
    Line::of(&finished.stderr, "network events")?.assert_all_delivered();
    let accepted = format!("\"type\":\"tcp_accept\",\"pid\":{}", std::process::id());
    assert!(finished.stdout.contains(&accepted), "{} {}", seen.port, finished.stdout);
    Ok(())
}

#[test]
fn privileges_stay_if_the_configuration_says_so() -> Result<()> {
    if !require(is_root(), ROOT) {
        return Ok(());
    }
    let mut agent = watching(&[], &[("LEAF_PRIVILEGES_DROP", "false")])?;
    activity(Duration::from_millis(100))?;
    agent.wait_for_stdout("\"type\"", PATIENCE)?;
    let own = std::process::id();
    for field in ["CapEff", "CapPrm", "CapBnd"] {
        assert_eq!(set(agent.pid(), field)?, set(own, field)?, "{field}");
    }
    for field in ["NoNewPrivs", "Seccomp"] {
        assert_eq!(of_all_threads(agent.pid(), field)?, of_all_threads(own, field)?, "{field}");
    }
    let finished = agent.terminate(PATIENCE)?;
    assert!(!finished.stderr.contains("privileges: "), "{}", finished.stderr);
    Ok(())
}

fn attempts(how: &str, folder: &Path) -> Result<serde_json::Map<String, Value>> {
    let output = Command::new(env!("CARGO_BIN_EXE_confined")).arg(how).arg(folder).output()?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let outcome: Value = serde_json::from_slice(&output.stdout).with_context(|| stderr)?;
    outcome.as_object().cloned().context("an object")
}

#[test]
fn what_was_given_up_is_gone() -> Result<()> {
    if !require(is_root(), "only root may do what is to be refused") {
        return Ok(());
    }
    let needed =
        ["read a file", "read the executable of a process", "start a thread", "resolve a name", "open a socket"];
    let (free, confined) = (Folder::new("free")?, Folder::new("confined")?);
    for (what, outcome) in attempts("free", free.path())? {
        // Paths that there are not: it was allowed to try.
        let expected = if ["mount", "become a program"].contains(&what.as_str()) { "ENOENT" } else { "ok" };
        assert_eq!(outcome, expected, "{what}");
    }
    let outcomes = attempts("drop", confined.path())?;
    assert!(outcomes.len() > 25, "{outcomes:#?}");
    for (what, outcome) in &outcomes {
        let expected = if needed.contains(&what.as_str()) { "ok" } else { "EPERM" };
        assert_eq!(outcome, expected, "{what} in {outcomes:#?}");
    }
    assert_eq!(fs::read_to_string(confined.path().join("kept"))?, "text");
    assert_eq!(fs::read_dir(confined.path())?.count(), 1);
    Ok(())
}

/// Standard output of a doctor that has nothing to complain about.
fn doctor(launcher: &[&str], args: &[&str], env: &[(&str, &str)]) -> Result<String> {
    let output = agent::command(launcher, &[&["doctor"], args].concat(), env)?.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// The value of a setting in what the doctor tells of systemd.
fn of_unit<'a>(context: &'a str, name: &str) -> Result<Vec<&'a str>> {
    let line = context.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    Ok(line.with_context(|| format!("no {name} in {context}"))?.split_whitespace().collect())
}

/// The list of capabilities in what the doctor tells of Kubernetes.
fn of_pod(context: &str) -> Vec<String> {
    let list = context.lines().skip_while(|line| line.trim() != "add:").skip(1);
    list.map_while(|line| line.trim().strip_prefix("- "))
        .filter_map(|item| item.split_whitespace().next())
        .map(|name| format!("CAP_{name}"))
        .collect()
}

/// `-all,+bpf,+perfmon`, as setpriv(1) wants it.
fn only(capabilities: &[impl AsRef<str>]) -> String {
    let names = capabilities.iter().map(|name| name.as_ref().trim_start_matches("CAP_").to_ascii_lowercase());
    names.fold("-all".to_owned(), |list, name| format!("{list},+{name}"))
}

/// What this launcher leaves an agent is enough for both rooms by their best rungs.
fn assert_enough(launcher: &[&str]) -> Result<()> {
    let mut agent = watching(launcher, &[])?;
    agent.wait_for_stderr("privileges: keeps", PATIENCE)?;
    let seen = activity(Duration::from_secs(3))?;
    assert_confined_to(agent.pid(), &["CAP_SYS_PTRACE"])?;
    let finished = agent.terminate(PATIENCE)?;
    for room in ["process: watching by tp_btf", "network: watching by tp_btf"] {
        assert!(finished.stderr.contains(room), "{}", finished.stderr);
    }
    assert_complete(&finished, &seen, BY_EBPF)
}

#[test]
fn the_security_context_is_enough_for_all_rooms_in_a_container() -> Result<()> {
    if !require(is_root(), ROOT) {
        return Ok(());
    }
    let context = doctor(&[], &["--security-context"], &[])?;
    let capabilities = of_pod(&context);
    assert!(capabilities.contains(&"CAP_BPF".to_owned()), "{context}");
    let only = only(&capabilities);
    let launcher = ["setpriv", "--no-new-privs", "--bounding-set", &only, "--inh-caps", "-all"];
    assert_enough(&launcher)
}

#[test]
fn the_security_context_is_enough_for_all_rooms_in_a_unit_of_another_user() -> Result<()> {
    if !require(is_root(), ROOT) {
        return Ok(());
    }
    let context = doctor(&[], &["--security-context"], &[])?;
    let capabilities = of_unit(&context, "AmbientCapabilities")?;
    assert_eq!(capabilities, of_unit(&context, "CapabilityBoundingSet")?);
    let only = only(&capabilities);
    let sets = ["--no-new-privs", "--bounding-set", &only, "--inh-caps", &only, "--ambient-caps", &only];
    let copy = ForEveryone::new()?;
    let path = copy.path();
    let path = path.to_str().context("UTF-8")?;
    // The copy takes the place of the agent that the harness adds: `sh -c 'shift; exec COPY "$@"' sh AGENT …`.
    let script = format!("shift; exec {path} \"$@\"");
    let launcher = [&AS_NOBODY[..], &sets, &["sh", "-c", &script, "sh"]].concat();
    assert_enough(&launcher)
}

#[test]
fn the_settings_for_systemd_are_ones_that_systemd_knows() -> Result<()> {
    let verify = "systemd-analyze";
    if !require(has_program(verify), "there is no systemd-analyze") {
        return Ok(());
    }
    let context = doctor(&[], &["--security-context"], &[])?;
    let (_, unit) = context.split_once("[Service]").context("a unit")?;
    let folder = Folder::new("unit")?;
    let file = folder.path().join("leaf.service");
    fs::write(&file, format!("[Service]\nExecStart=/bin/true\n{unit}"))?;
    let output = Command::new(verify).arg("verify").arg(&file).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // It says what it does not know, and goes on.
    assert!(output.status.success() && !said.contains("leaf.service:"), "{said}");
    Ok(())
}

#[test]
fn the_doctor_has_nothing_to_repair_where_every_rung_holds() -> Result<()> {
    if !require(is_root(), ROOT) {
        return Ok(());
    }
    let report: Value = serde_json::from_str(&doctor(&[], &["--json"], &[])?)?;
    let rooms = report["rooms"].as_array().context("rooms")?;
    let hooks = rooms.iter().flat_map(|room| room["hooks"].as_array().into_iter().flatten());
    let refused = hooks.filter(|hook| hook["refused"].as_array().is_none_or(|refused| !refused.is_empty())).count();
    let fixes = doctor(&[], &["--fix"], &[])?;
    assert_eq!(fixes.contains("every hook has the best rung"), refused == 0, "{fixes}");
    Ok(())
}

#[test]
fn the_doctor_prints_the_commands_and_runs_none() -> Result<()> {
    if !require(is_root(), ROOT) {
        return Ok(());
    }
    let env = [("LEAF_ROOMS_PROCESS_RUNG", "tracepoint")];
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let fixes = doctor(&WITHOUT_TRACEFS, &["--fix"], &env)?;
    assert_eq!(fixes, "# For classic tracepoints:\nmount -t tracefs tracefs /sys/kernel/tracing\n");
    assert_eq!(fs::read_to_string("/proc/self/mounts")?, mounts);
    let json = doctor(&WITHOUT_TRACEFS, &["--fix", "--json"], &env)?;
    let json: Value = serde_json::from_str(&json)?;
    assert_eq!(json["commands"][0]["command"], "mount -t tracefs tracefs /sys/kernel/tracing");
    Ok(())
}

#[test]
fn the_command_for_an_ordinary_user_gives_the_better_rungs() -> Result<()> {
    if !require(is_root(), "to become an ordinary user takes root")
        || !require(has_program("setcap"), "there is no setcap")
    {
        return Ok(());
    }
    let copy = ForEveryone::new()?;
    let path = copy.path();
    let doctor = |args: &[&str]| -> Result<String> {
        let output = agent::command_of(&path, &AS_NOBODY, &[&["doctor"], args].concat(), &[]).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let fixes = doctor(&["--fix"])?;
    let command = fixes.lines().find(|line| !line.starts_with('#')).with_context(|| fixes.clone())?;
    let words: Vec<&str> = command.split_whitespace().collect();
    assert_eq!((&words[..2], words.len()), (&["sudo", "setcap"][..], 4), "{command}");
    assert_eq!(words[3], path.to_str().context("UTF-8")?);
    let setcap = place::program("setcap").context("setcap")?;
    if !require(Command::new(setcap).args(&words[2..]).status()?.success(), "files have no capabilities here") {
        return Ok(());
    }
    let report: Value = serde_json::from_str(&doctor(&["--json"])?)?;
    for room in report["rooms"].as_array().context("rooms")? {
        assert_eq!(room["source"], "tp_btf", "{room:#}");
    }
    Ok(())
}
