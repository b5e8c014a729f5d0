//! How the agent itself is doing.
#![forbid(unsafe_code)]

pub mod ledger;
