//! `agent doctor`: what this kernel and this user allow, and which rung each
//! hook of each room takes. It attaches for real, and detaches again.

mod fix;
mod security_context;

use super::{Failure, File, Refused, print};
use crate::{
    config::Config,
    kernel::{
        attach::{self, RoomReport},
        features::{self, Feature},
        load::Kernel,
        refusal::Refusal,
        support::{self, CAPABILITIES, Capabilities},
    },
    probes::{PROCFS, ROOMS},
};
use serde::Serialize;
use std::{collections::BTreeMap, fmt::Write as _};

/// Say what this machine allows, which way each probe takes, and why not a better one.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON, of whatever is asked for
    #[arg(long)]
    json: bool,
    /// Print the commands that give better rungs; none of them is run
    #[arg(long)]
    fix: bool,
    /// Print the least privilege that this configuration takes, for Kubernetes and for systemd; attaches nothing
    #[arg(long, conflicts_with = "fix")]
    security_context: bool,
    #[command(flatten)]
    file: File,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    agent: &'static str,
    kernel: String,
    architecture: &'static str,
    uid: u32,
    host_pid_namespace: bool,
    capabilities: BTreeMap<&'static str, bool>,
    btf: Found,
    mounts: Vec<Mount>,
    features: Vec<Feature>,
    rooms: Vec<RoomReport>,
}

#[derive(Debug, Serialize)]
struct Found {
    found: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
}

#[derive(Debug, Serialize)]
struct Mount {
    kind: &'static str,
    /// Empty: not mounted.
    paths: Vec<String>,
    /// What needs it.
    purpose: &'static str,
}

/// File systems that probes may need, and for what.
const MOUNTS: [(&str, &str); 5] = [
    ("proc", "processes, and all rooms without eBPF"),
    ("tracefs", "classic tracepoints; mount -t tracefs tracefs /sys/kernel/tracing"),
    ("bpf", "pinned objects, which no room uses yet"),
    ("cgroup2", "control groups v2"),
    ("cgroup", "control groups v1"),
];

const OTHER_PIDS: &str = "another than the host's: /proc does not know the processes of events (hostPID: true)";

/// Runs the command.
pub fn execute(args: &Args) -> Result<(), Refused> {
    let config = args.file.read(Vec::new())?.config;
    if args.security_context {
        let context = security_context::Context::of(&config);
        return if args.json { print_json(&context) } else { print(&context.text()) };
    }
    let report = examine(&config);
    match (args.fix, args.json) {
        (true, true) => print_json(&fix::Fixes::of(&report, &config)),
        (true, false) => print(&fix::Fixes::of(&report, &config).text()),
        (false, true) => print_json(&report),
        (false, false) => print(&text(&report)),
    }
}

fn print_json(value: &impl Serialize) -> Result<(), Refused> {
    let json = serde_json::to_string_pretty(value)
        .map_err(|error| (Failure::Failed, format!("failed to write the report: {error}")))?;
    print(&format!("{json}\n"))
}

fn examine(config: &Config) -> Report {
    let capabilities = Capabilities::effective();
    let kernel = Kernel::read(ROOMS);
    let rooms = ROOMS
        .iter()
        .map(|room| attach::attach(&kernel, room, &config.room(room.name), &(room.tuning)(config)).0)
        .collect();
    Report {
        agent: env!("CARGO_PKG_VERSION"),
        kernel: support::release(),
        architecture: std::env::consts::ARCH,
        uid: rustix::process::geteuid().as_raw(),
        host_pid_namespace: support::in_host_pid_namespace(),
        capabilities: CAPABILITIES.iter().map(|(name, _)| (*name, capabilities.has(name))).collect(),
        btf: Found { found: kernel.btf.is_ok(), cause: kernel.btf.err() },
        mounts: MOUNTS.iter().map(|&(kind, purpose)| Mount { kind, paths: support::mounts(kind), purpose }).collect(),
        features: features::features(),
        rooms,
    }
}

fn text(report: &Report) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:<20} {value}");
    };
    line("agent", report.agent);
    line("kernel", &format!("{} {}", report.kernel, report.architecture));
    line("user", &if report.uid == 0 { "root".to_owned() } else { format!("uid {}", report.uid) });
    line("pid namespace", if report.host_pid_namespace { "the host's" } else { OTHER_PIDS });
    line("BTF", report.btf.cause.as_deref().unwrap_or("yes"));
    for (name, has) in &report.capabilities {
        line(name, yes_no(*has));
    }
    for mount in &report.mounts {
        match mount.paths.as_slice() {
            [] => line(mount.kind, &format!("not mounted (for {})", mount.purpose)),
            [path] => line(mount.kind, path),
            [path, more @ ..] => line(mount.kind, &format!("{path} and {} more", more.len())),
        }
    }
    for feature in &report.features {
        match (feature.supported, &feature.cause) {
            (Some(supported), _) => line(feature.name, yes_no(supported)),
            (None, cause) => {
                line(feature.name, &format!("not known: {}", cause.as_deref().unwrap_or("no reason given")))
            }
        }
    }
    for room in &report.rooms {
        write_room(&mut out, room);
    }
    out
}

fn write_room(out: &mut String, room: &RoomReport) {
    let way = if room.source == PROCFS { "no eBPF: polls /proc" } else { room.source };
    let _ = writeln!(out, "\nroom {:<15} {way}", room.room);
    if let Some(refusal) = &room.refused {
        write_refusal(out, refusal);
    }
    for hook in &room.hooks {
        let way = match (hook.rung, &hook.target) {
            (Some(rung), Some(target)) => format!("{rung} {target}"),
            _ => "none".to_owned(),
        };
        let _ = writeln!(out, "  {:<18} {way}", hook.hook);
        for refusal in &hook.refused {
            write_refusal(out, refusal);
        }
    }
}

fn write_refusal(out: &mut String, refusal: &Refusal) {
    let Refusal { rung, target, cause, way_out } = refusal;
    let _ = writeln!(out, "    not {rung} {target}: {cause}\n      way out: {way_out}");
}

fn yes_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}
