//! What must hold on every kernel. `cargo xtask test kernels` runs this suite in virtual
//! machines; on the machine itself it is one suite among the others.

#[cfg(target_arch = "x86_64")]
mod cost;
mod ladder;
mod leftovers;
mod network;
mod poor;
mod process;
