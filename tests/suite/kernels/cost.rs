//! What every program costs the verifier, and that the kernel takes it.

use std::collections::BTreeMap;

use anyhow::Result;
use leaf::probes::ROOMS;
use leaf_tests::skip::{is_root, require};
use leaf_tests::told::tell;
use leaf_tests::verifier::{Load, loads};

use crate::ladder::{in_matrix, is_missing_program, missing};

/// A third of the limit stays free.
const MOST: u64 = 1_000_000 * 2 / 3;

/// Rungs that between them load every program.
const RUNGS: [&str; 5] = ["tp_btf", "fentry", "raw_tp", "tracepoint", "kprobe"];

#[test]
fn every_program_is_taken_by_the_verifier_far_from_its_limit() -> Result<()> {
    if !require(is_root(), "eBPF takes root") {
        return Ok(());
    }
    let mut costs: BTreeMap<String, Load> = BTreeMap::new();
    for rung in RUNGS {
        let rooms: Vec<String> =
            ROOMS.iter().map(|room| format!("LEAF_ROOMS_{}_RUNG", room.name.to_uppercase())).collect();
        let options = [
            ("LEAF_NETWORK_UDP_FLOWS", "true"),
            ("LEAF_NETWORK_DNS", "events"),
            ("LEAF_NETWORK_STALL_THRESHOLD", "100ms"),
        ];
        let env: Vec<_> = rooms.iter().map(|name| (name.as_str(), rung)).chain(options).collect();
        for load in loads(&["doctor", "--json"], &env)? {
            // Those are questions to the kernel, of the doctor and of aya.
            if !load.program.is_empty() && load.program != "aya_name_check" {
                costs.entry(load.program.clone()).or_insert(load);
            }
        }
    }
    for load in costs.values() {
        println!("{load:?}");
        tell(&[
            "cost",
            &load.program,
            &load.instructions.to_string(),
            &load.peak_states.to_string(),
            if load.taken { "taken" } else { "refused" },
        ]);
    }
    for load in costs.values() {
        assert!(load.instructions < MOST, "{load:?}");
        // Outside of the matrix a policy may refuse a kind of programs before they are verified.
        let by_verifier = in_matrix() || load.instructions > 0;
        assert!(load.taken || !by_verifier || is_missing_program(&load.program)?, "{load:?}");
    }
    if in_matrix() {
        // All that rooms cannot do without were forced, so they were loaded.
        let rungs = ROOMS.iter().flat_map(|room| {
            let hooks = room.hooks.iter().filter(|hook| hook.required);
            hooks.flat_map(|hook| hook.rungs).map(|rung| (room.name, rung))
        });
        for (room, rung) in rungs {
            // The kernel keeps fifteen characters of a name.
            let name: String = rung.program.chars().take(15).collect();
            match costs.get(&name) {
                Some(load) => assert_ne!(load.taken, is_missing_program(&name)?, "{load:?}"),
                // After the first that is refused the others are not tried.
                None => assert!(missing(room, rung.name())?.is_some(), "{name} was not loaded: {costs:?}"),
            }
        }
    }
    assert!(costs.len() > 10, "{costs:?}");
    Ok(())
}
