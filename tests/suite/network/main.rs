//! The network room on the real kernel: what `ss`, the two ends and a server's own
//! log say of connections is what the agent tells of them.

mod datagram;
mod life;
mod limits;
mod owner;
mod pipeline;
mod trouble;
mod truth;
