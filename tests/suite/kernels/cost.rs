//! What every program costs the verifier, and that the kernel takes it.

use std::collections::BTreeMap;

use anyhow::Result;
use leaf_tests::skip::{is_root, require};
use leaf_tests::told::tell;
use leaf_tests::verifier::{Load, loads};

use crate::ladder::{in_matrix, is_missing_program};

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
        let env = [
            ("LEAF_ROOMS_PROCESS_RUNG", rung),
            ("LEAF_ROOMS_NETWORK_RUNG", rung),
            ("LEAF_NETWORK_UDP_FLOWS", "true"),
            ("LEAF_NETWORK_DNS", "events"),
            ("LEAF_NETWORK_STALL_THRESHOLD", "100ms"),
        ];
        for load in loads(&["doctor", "--json"], &env)? {
            // Those without a name are the doctor's own questions.
            if !load.program.is_empty() {
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
    assert!(costs.len() > 10, "{costs:?}");
    Ok(())
}
