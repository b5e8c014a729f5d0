//! The ladder: each hook of a room is attached by the best rung that holds,
//! and each rung that did not is reported with its reason and the way out.

use super::{
    btf,
    load::Kernel,
    programs::{Held, Programs},
    refusal::{self, Refusal},
    ring::Ring,
};
use crate::{
    config,
    probes::{Descriptor, Hook, PROCFS, Rung, Tuning, Way},
};
use aya::{
    Ebpf,
    programs::{BtfTracePoint, FEntry, FExit, Iter, KProbe, ProgramError, RawTracePoint, TracePoint},
};
use serde::Serialize;

/// A room that is attached: dropping it detaches.
pub struct Attached {
    /// Keeps programs and links alive.
    programs: Option<Programs>,
    /// What its programs write.
    pub ring: Ring,
}

impl Attached {
    /// Takes the programs out of the kernel; what they sent stays in the ring.
    pub fn detach(&mut self) {
        self.programs = None;
    }

    /// What runs in the kernel, until it is detached.
    pub fn programs(&mut self) -> Option<&mut Programs> {
        self.programs.as_mut()
    }
}

/// Which way each hook of a room took.
#[derive(Clone, Debug, Serialize)]
pub struct RoomReport {
    /// Name of the room.
    pub room: &'static str,
    /// How its events come about: the lowest rung of its required hooks, or `procfs`.
    pub source: &'static str,
    /// Why there is no eBPF at all, if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refusal>,
    /// Hook by hook.
    pub hooks: Vec<HookReport>,
}

/// What became of a hook.
#[derive(Clone, Debug, Serialize)]
pub struct HookReport {
    /// `exec`
    pub hook: &'static str,
    /// The rung that holds; `None` if none does.
    pub rung: Option<&'static str>,
    /// What it is attached to.
    pub target: Option<String>,
    /// Better rungs that do not hold.
    pub refused: Vec<Refusal>,
}

/// Loads and attaches a room. Without the required hooks it is given up as a
/// whole, and the report's source is `procfs`.
#[must_use]
pub fn attach(
    kernel: &Kernel,
    room: &Descriptor,
    settings: &config::Room,
    tuning: &Tuning,
) -> (RoomReport, Option<Attached>) {
    let mut report = RoomReport { room: room.name, source: PROCFS, refused: None, hooks: Vec::new() };
    if settings.rung == PROCFS {
        report.refused = Some(Refusal {
            rung: "eBPF",
            target: room.name.into(),
            cause: format!("rooms.{}.rung is {PROCFS}", room.name),
            way_out: format!("set it to {}", config::RUNG_AUTO),
        });
        return (report, None);
    }
    let mut ebpf = match kernel.load(room, settings, tuning) {
        Ok(ebpf) => ebpf,
        Err(error) => {
            report.refused = Some(refusal::of_room(room, &error));
            return (report, None);
        }
    };
    let (mut required, mut held) = (Vec::new(), Held::new());
    // Those first that decide whether and how.
    let (first, then): (Vec<&Hook>, Vec<&Hook>) =
        room.hooks.iter().filter(|hook| !tuning.unused.contains(&hook.name)).partition(|hook| hook.required);
    for hook in first.into_iter().chain(then) {
        let by_address = required.iter().any(|rung: &&Rung| rung.by_address);
        let (climbed, rung) = climb(&mut ebpf, kernel, hook, &settings.rung, by_address);
        report.hooks.push(climbed);
        match rung {
            Some(rung) => {
                held.insert(hook.name, rung.program);
                if hook.required {
                    required.push(rung);
                }
            }
            None if hook.required => return (report, None),
            None => {}
        }
    }
    match Ring::take(&mut ebpf) {
        Ok(ring) => {
            report.source = lowest(&required);
            (report, Some(Attached { programs: Some(Programs::new(ebpf, kernel.names(room), held)), ring }))
        }
        Err(error) => {
            report.refused = Some(refusal::of_room(room, &error));
            (report, None)
        }
    }
}

/// The lowest of the rungs that the required hooks took.
fn lowest(taken: &[&Rung]) -> &'static str {
    taken.iter().map(|rung| rung.way).max().map_or(PROCFS, Way::name)
}

fn climb(
    ebpf: &mut Ebpf,
    kernel: &Kernel,
    hook: &'static Hook,
    forced: &str,
    by_address: bool,
) -> (HookReport, Option<&'static Rung>) {
    let mut report = HookReport { hook: hook.name, rung: None, target: None, refused: Vec::new() };
    // A hook that knows only other ways than the forced one keeps its own.
    let is_forced = hook.required || hook.rungs.iter().any(|rung| rung.name() == forced);
    // What the required hooks write, an optional one finds only if it knows objects as they do.
    let must_agree = !hook.required && hook.rungs.iter().any(|rung| rung.by_address == by_address);
    for rung in hook.rungs {
        if forced != config::RUNG_AUTO && is_forced && rung.name() != forced {
            continue;
        }
        if must_agree && rung.by_address != by_address {
            // A lower one is not missed.
            if by_address {
                report.refused.push(refusal::disagrees(rung));
            }
            continue;
        }
        match hold(ebpf, kernel, rung) {
            Ok(()) => {
                report.rung = Some(rung.name());
                report.target = Some(rung.told());
                return (report, Some(rung));
            }
            Err(refusal) => report.refused.push(refusal),
        }
    }
    if report.refused.is_empty() {
        report.refused.push(refusal::unknown(hook.name, forced));
    }
    (report, None)
}

/// Loads and attaches one program.
fn hold(ebpf: &mut Ebpf, kernel: &Kernel, rung: &Rung) -> Result<(), Refusal> {
    let btf = match need_btf(kernel, rung) {
        Ok(btf) => Some(btf),
        Err(refusal) if rung.needs_btf => return Err(refusal),
        Err(_) => None,
    };
    let (target, tracefs) = (rung.target, kernel.tracefs.is_some());
    let held = match (rung.way, btf, target.split_once(':')) {
        (Way::BtfTracepoint, Some(btf), _) => {
            let program: &mut BtfTracePoint = get(ebpf, rung)?;
            program.load(target, btf).and_then(|()| program.attach().map(drop))
        }
        (Way::FunctionEntry, Some(btf), _) => {
            let program: &mut FEntry = get(ebpf, rung)?;
            program.load(target, btf).and_then(|()| program.attach().map(drop))
        }
        (Way::FunctionExit, Some(btf), _) => {
            let program: &mut FExit = get(ebpf, rung)?;
            program.load(target, btf).and_then(|()| program.attach().map(drop))
        }
        // Attached anew for every look.
        (Way::Iterator, Some(btf), _) => get::<Iter>(ebpf, rung)?.load(target, btf),
        (Way::RawTracepoint, ..) => {
            let program: &mut RawTracePoint = get(ebpf, rung)?;
            program.load().and_then(|()| program.attach(target).map(drop))
        }
        (Way::Tracepoint, _, Some((category, name))) if tracefs => {
            let program: &mut TracePoint = get(ebpf, rung)?;
            program.load().and_then(|()| program.attach(category, name).map(drop))
        }
        (Way::Tracepoint, ..) => return Err(refusal::no_tracefs(rung)),
        (Way::Probe, ..) => {
            let program: &mut KProbe = get(ebpf, rung)?;
            program.load().and_then(|()| program.attach(target, 0).map(drop))
        }
        (_, None, _) => return need_btf(kernel, rung).map(drop),
    };
    held.map_err(|error| refusal::of_program(rung, &error))
}

fn need_btf<'a>(kernel: &'a Kernel, rung: &Rung) -> Result<&'a aya::Btf, Refusal> {
    kernel.btf.as_ref().map_err(|reason| {
        let way_out = match std::path::Path::new(btf::VMLINUX).exists() {
            true => refusal::REPORT,
            false => "use a kernel that is built with CONFIG_DEBUG_INFO_BTF=y",
        };
        refusal::refusal(rung, reason.clone(), way_out.into())
    })
}

fn get<'a, P>(ebpf: &'a mut Ebpf, rung: &Rung) -> Result<&'a mut P, Refusal>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = rung.program;
    let missing =
        || refusal::refusal(rung, format!("the object has no program {program} of this type"), refusal::REPORT.into());
    ebpf.program_mut(program).and_then(|program| program.try_into().ok()).ok_or_else(missing)
}
