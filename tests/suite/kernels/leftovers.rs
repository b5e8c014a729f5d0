//! What stays in the kernel when agents have come and gone: nothing. And two of them at once.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::maps::loaded_maps;
use aya::programs::{loaded_links, loaded_programs};
use leaf::config::Config;
use leaf::kernel::{attach, load::Kernel};
use leaf::probes::ROOMS;
use leaf_tests::agent::AgentProcess;
use leaf_tests::skip::{is_root, require};
use leaf_tests::workload::Truth;
use rustix::process::Signal;

use crate::ladder::{PATIENCE, in_matrix};
use crate::process::events_of;

/// Every eBPF object of the kernel, and every pin.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Object {
    Program(u32),
    Map(u32),
    Link(u32),
    Pin(String),
}

fn objects() -> Result<BTreeSet<Object>> {
    let mut objects = BTreeSet::new();
    // One that goes while they are counted is an error that names it, and is no object.
    objects.extend(loaded_programs().flatten().map(|program| Object::Program(program.id())));
    objects.extend(loaded_maps().flatten().map(|map| Object::Map(map.id())));
    objects.extend(loaded_links().flatten().map(|link| Object::Link(link.id())));
    for pin in fs::read_dir("/sys/fs/bpf").into_iter().flatten() {
        objects.insert(Object::Pin(pin?.path().display().to_string()));
    }
    Ok(objects)
}

/// The kernel frees a little later than the last descriptor is closed.
fn assert_only(before: &BTreeSet<Object>) -> Result<()> {
    let begin = Instant::now();
    loop {
        let now = objects()?;
        let left: Vec<&Object> = now.difference(before).collect();
        if left.is_empty() {
            return Ok(());
        }
        ensure!(begin.elapsed() < PATIENCE, "left in the kernel: {left:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn agent() -> Result<AgentProcess> {
    let mut agent = AgentProcess::start(&["run", "--exporter", "console", "--format", "json"], &[])?;
    agent.wait_for_stderr("network: watching", PATIENCE)?;
    Ok(agent)
}

#[test]
fn nothing_is_left_of_an_agent_that_has_ended_or_was_killed() -> Result<()> {
    if !require(is_root(), "eBPF takes root") {
        return Ok(());
    }
    let before = objects()?;
    let agent_ends = agent()?;
    let of_it = objects()?.difference(&before).count();
    ensure!(of_it > 20, "an agent has only {of_it} objects");
    agent_ends.terminate(PATIENCE)?;
    assert_only(&before)?;
    let mut agent_killed = agent()?;
    agent_killed.signal(Signal::KILL)?;
    agent_killed.wait(PATIENCE)?;
    assert_only(&before)
}

#[test]
fn nothing_is_left_of_a_thousand_attachments_or_twenty_where_it_is_slow() -> Result<()> {
    if !require(is_root(), "eBPF takes root") {
        return Ok(());
    }
    let cycles = if in_matrix() { 20 } else { 1000 };
    let before = objects()?;
    let config = Config::default();
    let kernel = Kernel::read(ROOMS);
    let descriptors = || fs::read_dir("/proc/self/fd").map(Iterator::count);
    let open = descriptors()?;
    for cycle in 0..cycles {
        for room in ROOMS {
            let (report, attached) = attach::attach(&kernel, room, &config.room(room.name), &(room.tuning)(&config));
            let mut attached = attached.with_context(|| format!("{report:?}"))?;
            if cycle == 0 {
                ensure!(objects()?.difference(&before).count() > 10, "{} has no objects", room.name);
            }
            attached.detach();
        }
    }
    assert_eq!(descriptors()?, open, "open files");
    assert_only(&before)
}

#[test]
fn two_agents_on_one_node_see_the_same_and_the_end_of_one_is_nothing_to_the_other() -> Result<()> {
    if !require(is_root(), "eBPF takes root") {
        return Ok(());
    }
    let run = || Truth::of(Command::new("/bin/sh").args(["-c", "exit 3"]), |_| {});
    let (first, second) = (agent()?, agent()?);
    let both = run()?;
    let first = first.terminate(PATIENCE)?;
    let alone = run()?;
    let second = second.terminate(PATIENCE)?;
    for finished in [&first, &second] {
        let events = events_of(finished, both.pid)?;
        assert_eq!(events.len(), 3, "{events:?}");
        assert_eq!(events["process_exit"]["exit_code"], 3);
    }
    assert_eq!(events_of(&second, alone.pid)?.len(), 3);
    assert_eq!(events_of(&first, alone.pid)?.len(), 0);
    Ok(())
}
