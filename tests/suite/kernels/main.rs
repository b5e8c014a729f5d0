//! What must hold on every kernel. `cargo xtask test kernels` runs this suite in virtual
//! machines; on the machine itself it is one suite among the others.

mod confined;
mod cost;
mod ladder;
mod leftovers;
mod network;
mod poor;
mod process;
