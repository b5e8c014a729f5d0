//! `agent doctor --fix`: the commands that give better rungs, from what the report found. None is run: they change
//! the machine, and most take another user.

use super::{Report, security_context::planned};
use crate::{
    config::Config,
    kernel::{privileges::capability, refusal::Refusal},
    probes::{PROCFS, Way},
};
use serde::Serialize;
use std::{fmt::Write as _, path::Path};

/// What `--fix` prints.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Fixes {
    /// To be run in this order.
    commands: Vec<Fix>,
    /// Rungs that no command makes hold.
    remaining: Vec<String>,
}

/// A command, and what for.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Fix {
    purpose: String,
    command: String,
}

/// Settings of the kernel that stand between an agent that has its capabilities and a rung.
struct Sysctl {
    rungs: &'static [&'static str],
    name: &'static str,
    refuses: fn(i64) -> bool,
    value: i64,
    /// It does not concern who has `CAP_SYS_ADMIN`.
    spares_admin: bool,
    purpose: &'static str,
}

const SYSCTLS: &[Sysctl] = &[
    Sysctl {
        rungs: &["tracepoint", "kprobe"],
        name: "kernel.perf_event_paranoid",
        // 3 and more are of distributions: perf_event_open() takes CAP_SYS_ADMIN.
        refuses: |value| value > 2,
        value: 2,
        spares_admin: true,
        purpose: "classic tracepoints and kprobes by CAP_PERFMON",
    },
    Sysctl {
        rungs: &["fentry", "fexit"],
        name: "kernel.ftrace_enabled",
        refuses: |value| value == 0,
        value: 1,
        spares_admin: false,
        purpose: "programs at the beginning and the end of the kernel's functions",
    },
];

/// A rung that does not hold: room, hook (none if it is the whole room), and why.
type Missing<'a> = (&'a str, Option<&'a str>, &'a Refusal);

impl Fixes {
    /// From a report on this machine.
    pub fn of(report: &Report, config: &Config) -> Self {
        let binary = std::env::current_exe().map_or_else(|_| "agent".to_owned(), |path| path.display().to_string());
        Self::from(report, config, &binary, |name| {
            let path = Path::new("/proc/sys").join(name.replace('.', "/"));
            std::fs::read_to_string(path).ok()?.trim().parse().ok()
        })
    }

    fn from(report: &Report, config: &Config, binary: &str, sysctl: impl Fn(&str) -> Option<i64>) -> Self {
        // What the configuration rules out is nobody's to repair.
        let wanted = |room: &str| config.probes.iter().any(|name| name == room) && config.room(room).rung != PROCFS;
        let missing: Vec<Missing> = report
            .rooms
            .iter()
            .filter(|room| wanted(room.room))
            .flat_map(|room| {
                let hooks = room.hooks.iter().flat_map(|hook| hook.refused.iter().map(|why| (Some(hook.hook), why)));
                let whole = room.refused.iter().map(|why| (None, why));
                whole.chain(hooks).map(|(hook, why)| (room.room, hook, why))
            })
            .collect();
        let is_missing = |rung: &str| missing.iter().any(|(_, _, refusal)| refusal.rung == rung);
        let mut commands = Vec::new();
        let mut solved: Vec<&str> = Vec::new();

        let lacks = lacking(report, config);
        let privileged = lacks.iter().all(|name| !matches!(name.as_str(), "CAP_BPF" | "CAP_PERFMON"));
        if !lacks.is_empty() {
            commands.push(privilege(report.uid, &lacks, config, report, binary));
        }
        if !privileged {
            // Whatever else is wrong, this was asked first.
            solved.extend(Way::ALL.map(Way::name));
            solved.push("eBPF");
        }
        let tracefs_mounted = report.mounts.iter().any(|mount| mount.kind == "tracefs" && !mount.paths.is_empty());
        // Without BTF it will be the next thing to be missing.
        if !tracefs_mounted && (is_missing("tracepoint") || (!report.btf.found && planned(config, false).tracefs)) {
            commands.push(Fix {
                purpose: "classic tracepoints".into(),
                command: "mount -t tracefs tracefs /sys/kernel/tracing".into(),
            });
            solved.push("tracepoint");
        }
        let is_admin = report.capabilities.get("CAP_SYS_ADMIN") == Some(&true);
        let applies = |setting: &&Sysctl| {
            privileged && !(setting.spares_admin && is_admin) && setting.rungs.iter().any(|rung| is_missing(rung))
        };
        for setting in SYSCTLS.iter().filter(applies) {
            if let Some(now) = sysctl(setting.name).filter(|value| (setting.refuses)(*value)) {
                commands.push(Fix {
                    purpose: format!("{} (it is {now})", setting.purpose),
                    command: format!("sysctl -w {}={}", setting.name, setting.value),
                });
                solved.extend(setting.rungs);
            }
        }
        let remaining = missing.iter().filter(|(_, _, refusal)| !solved.contains(&refusal.rung)).map(told).collect();
        Self { commands, remaining }
    }

    /// A shell script with comments.
    pub fn text(&self) -> String {
        let mut out = String::new();
        if self.commands.is_empty() && self.remaining.is_empty() {
            return "# Nothing to do: every hook has the best rung that the configuration allows.\n".into();
        }
        if self.commands.is_empty() {
            out.push_str("# Nothing to do: no command makes a better rung hold.\n");
        }
        for fix in &self.commands {
            let _ = writeln!(out, "# For {}:\n{}", fix.purpose, fix.command);
        }
        for remaining in &self.remaining {
            let _ = writeln!(out, "# No command helps {remaining}");
        }
        out
    }
}

/// Capabilities that the agent would use and has not.
fn lacking(report: &Report, config: &Config) -> Vec<String> {
    let work = planned(config, report.btf.found);
    let has = |name: &str| {
        let of = |name: &str| report.capabilities.get(name).copied();
        let by_admin = matches!(name, "CAP_BPF" | "CAP_PERFMON") && of("CAP_SYS_ADMIN") == Some(true);
        // What the report does not know was not asked for before, and is not worth a command.
        by_admin || of(name).unwrap_or(true)
    };
    let mut names: Vec<String> = work.needs().flat_map(|need| capability::names(need.capability)).collect();
    names.sort();
    names.dedup();
    names.retain(|name| !has(name));
    names
}

fn privilege(uid: u32, lacks: &[String], config: &Config, report: &Report, binary: &str) -> Fix {
    let purpose = format!("{}, which this user does not have", lacks.join(", "));
    if uid == 0 {
        // Root without them: who started it has taken them away.
        return Fix {
            purpose: format!("{purpose} though it is root: give them to the container or the unit, as this says"),
            command: format!("{binary} doctor --security-context"),
        };
    }
    // A file's capabilities are not added to what it had before, so all of them are named.
    let work = planned(config, report.btf.found);
    let mut all: Vec<String> = work
        .needs()
        .flat_map(|need| capability::names(need.capability))
        .map(|name| name.to_ascii_lowercase())
        .collect();
    all.sort();
    all.dedup();
    Fix { purpose, command: format!("sudo setcap {}+ep {binary}", all.join(",")) }
}

fn told((room, hook, refusal): &Missing) -> String {
    let Refusal { rung, target, cause, way_out } = refusal;
    let hook = hook.map(|hook| format!(" {hook}")).unwrap_or_default();
    format!("{room}{hook}, not {rung} {target}: {cause}; {way_out}")
}

#[cfg(test)]
mod tests {
    use super::{super::*, *};
    use crate::kernel::attach::HookReport;

    const BINARY: &str = "/usr/bin/agent";

    fn report(uid: u32, capabilities: &[&'static str], tracefs: bool, refused: &[(&'static str, &str)]) -> Report {
        let refused = refused.iter().map(|(rung, cause)| Refusal {
            rung,
            target: "sched_process_exec".into(),
            cause: (*cause).into(),
            way_out: "use a newer kernel".into(),
        });
        let hook = HookReport { hook: "exec", rung: None, target: None, refused: refused.collect() };
        Report {
            agent: "0",
            kernel: "6.1".into(),
            architecture: "x86_64",
            uid,
            host_pid_namespace: true,
            capabilities: CAPABILITIES.iter().map(|(name, _)| (*name, capabilities.contains(name))).collect(),
            btf: Found { found: true, cause: None },
            mounts: vec![Mount {
                kind: "tracefs",
                paths: tracefs.then(|| "/sys/kernel/tracing".to_owned()).into_iter().collect(),
                purpose: "",
            }],
            features: Vec::new(),
            rooms: vec![RoomReport { room: "process", source: PROCFS, refused: None, hooks: vec![hook] }],
        }
    }

    fn config() -> Config {
        Config { probes: vec!["process".into()], ..Config::default() }
    }

    const ALL: [&str; 7] = [
        "CAP_SYS_ADMIN",
        "CAP_BPF",
        "CAP_PERFMON",
        "CAP_NET_ADMIN",
        "CAP_SYS_RESOURCE",
        "CAP_SYS_PTRACE",
        "CAP_DAC_READ_SEARCH",
    ];

    #[test]
    fn where_every_rung_holds_there_is_nothing_to_do() {
        let fixes = Fixes::from(&report(0, &ALL, false, &[]), &config(), BINARY, |_| None);
        assert_eq!(fixes, Fixes { commands: Vec::new(), remaining: Vec::new() });
        assert!(fixes.text().starts_with("# Nothing to do"));
    }

    #[test]
    fn an_ordinary_user_is_told_the_capabilities_of_the_binary() {
        let denied = [
            ("tp_btf", "Operation not permitted"),
            ("tracepoint", "Operation not permitted"),
            ("raw_tp", "Operation not permitted"),
        ];
        let text = Fixes::from(&report(1000, &[], true, &denied), &config(), BINARY, |_| None).text();
        let commands: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(commands[0].starts_with("sudo setcap cap_bpf,cap_perfmon,cap_sys_ptrace"), "{text}");
        assert!(commands[0].ends_with("+ep /usr/bin/agent") && commands.len() == 1, "{text}");
        assert!(text.contains("CAP_BPF, CAP_PERFMON"), "{text}");
    }

    #[test]
    fn root_in_a_container_is_told_what_the_container_lacks() {
        let text = Fixes::from(&report(0, &[], true, &[("eBPF", "not permitted")]), &config(), BINARY, |_| None).text();
        assert!(text.contains("\n/usr/bin/agent doctor --security-context\n") && !text.contains("setcap"), "{text}");
    }

    #[test]
    fn tracefs_is_mounted_only_for_a_rung_that_needs_it() {
        let refused = [("tracepoint", "tracefs is not mounted")];
        let text = Fixes::from(&report(0, &ALL, false, &refused), &config(), BINARY, |_| None).text();
        assert_eq!(text, "# For classic tracepoints:\nmount -t tracefs tracefs /sys/kernel/tracing\n");
        let refused = [("tp_btf", "the kernel has no such tracepoint")];
        let text = Fixes::from(&report(0, &ALL, false, &refused), &config(), BINARY, |_| None).text();
        assert!(!text.contains("mount"), "{text}");
        assert!(
            text.contains("# No command helps process exec, not tp_btf sched_process_exec: the kernel has no"),
            "{text}"
        );
    }

    #[test]
    fn a_setting_of_the_kernel_counts_where_it_is_in_the_way() {
        let refused = [("tracepoint", "perf_event_open failed"), ("fexit", "failed")];
        let admin = Fixes::from(&report(0, &ALL, true, &refused), &config(), BINARY, |_| Some(3)).text();
        assert!(!admin.contains("perf_event_paranoid"), "{admin}");
        let report = report(0, &ALL[1..], true, &refused);
        let strict = |name: &str| Some(if name == "kernel.perf_event_paranoid" { 3 } else { 0 });
        let text = Fixes::from(&report, &config(), BINARY, strict).text();
        assert!(text.contains("\nsysctl -w kernel.perf_event_paranoid=2\n"), "{text}");
        assert!(text.contains("\nsysctl -w kernel.ftrace_enabled=1\n"), "{text}");
        let usual = |name: &str| Some(if name == "kernel.perf_event_paranoid" { 2 } else { 1 });
        let text = Fixes::from(&report, &config(), BINARY, usual).text();
        assert!(!text.contains("sysctl") && text.matches("# No command helps").count() == 2, "{text}");
    }

    #[test]
    fn a_room_that_is_to_poll_has_nothing_to_repair() {
        let mut config = config();
        config.rooms.get_mut("process").expect("a room").rung = PROCFS.into();
        let report = report(0, &ALL, false, &[("eBPF", "rooms.process.rung is procfs")]);
        assert!(Fixes::from(&report, &config, BINARY, |_| None).commands.is_empty());
        assert!(Fixes::from(&report, &config, BINARY, |_| None).remaining.is_empty());
    }
}
