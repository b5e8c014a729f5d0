//! The sockets by netlink: sock_diag(7), with the counts of each.

use super::{
    proc_net::over,
    socket::{Holder, Info, Socket},
};
use agent_common::network::{Counts, state};
use netlink_packet_core::{
    DecodeError, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, Nla as _,
};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, nlas::Nla},
};
use netlink_sys::{SocketAddr as Address, protocols::NETLINK_SOCK_DIAG};
use std::{io, time::Duration};
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// Larger than any one answer (`netlink_dump`: 32 KiB).
const ANSWER: usize = 64 << 10;
/// The kernel answers at once; the drain thread must not wait for one that does not.
const PATIENCE: Duration = Duration::from_secs(1);
/// Attribute of an answer (`enum` of include/uapi/linux/inet_diag.h), since 5.7.
const INET_DIAG_CGROUP_ID: u16 = 21;

/// Why there are no sockets.
#[derive(Debug, thiserror::Error)]
pub enum DiagError {
    /// The kernel, or a policy, does not have it.
    #[error("sock_diag is refused: {0}")]
    Refused(io::Error),
    /// An answer of another form.
    #[error("failed to read the answer of sock_diag: {0}")]
    Malformed(#[from] DecodeError),
    /// It may be better next time.
    #[error("failed to ask sock_diag: {0}")]
    Failed(io::Error),
}

impl From<io::Error> for DiagError {
    fn from(error: io::Error) -> Self {
        const REFUSALS: [i32; 8] = [
            libc::EPERM,
            libc::EACCES,
            libc::ENOENT,
            libc::ENOSYS,
            libc::EINVAL,
            libc::EPROTONOSUPPORT,
            libc::EAFNOSUPPORT,
            libc::EOPNOTSUPP,
        ];
        match error.raw_os_error() {
            Some(errno) if REFUSALS.contains(&errno) => Self::Refused(error),
            _ => Self::Failed(error),
        }
    }
}

/// All TCP sockets of this network namespace.
///
/// # Errors
/// [`DiagError`]; never with a part of the sockets, for what is not told would seem closed.
pub fn read() -> Result<Vec<Socket>, DiagError> {
    let netlink = netlink_sys::Socket::new(NETLINK_SOCK_DIAG)?;
    rustix::net::sockopt::set_socket_timeout(&netlink, rustix::net::sockopt::Timeout::Recv, Some(PATIENCE))
        .map_err(io::Error::from)?;
    let mut sockets = Vec::new();
    for (family, any) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        netlink.send_to(&question(family, any), &Address::new(0, 0), 0)?;
        answers(&netlink, |response| sockets.push(socket(&response)))?;
    }
    Ok(sockets)
}

fn question(family: u8, any: SocketId) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::INFO,
        states: StateFlags::all(),
        socket_id: any,
    };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn answers(netlink: &netlink_sys::Socket, mut each: impl FnMut(InetResponse)) -> Result<(), DiagError> {
    let mut buffer: Vec<u8> = Vec::with_capacity(ANSWER);
    loop {
        buffer.clear();
        netlink.recv(&mut buffer, 0)?;
        let mut rest = buffer.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)?;
            // Messages begin at multiples of four.
            let len = (message.header.length as usize).next_multiple_of(4).min(rest.len());
            rest = &rest[len.max(1)..];
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => each(*response),
                NetlinkPayload::Done(done) if done.code == 0 => return Ok(()),
                NetlinkPayload::Done(done) => {
                    return Err(io::Error::from_raw_os_error(done.code.saturating_neg()).into());
                }
                NetlinkPayload::Error(error) => return Err(error.to_io().into()),
                NetlinkPayload::Overrun(_) => return Err(io::Error::from_raw_os_error(libc::ENOBUFS).into()),
                _ => {}
            }
        }
    }
}

fn socket(response: &InetResponse) -> Socket {
    let header = &response.header;
    let id = &header.socket_id;
    let told = response.nlas.iter().find_map(|attribute| match attribute {
        Nla::TcpInfo(bytes) => Some(bytes.as_slice()),
        _ => None,
    });
    let cgroup_id = response.nlas.iter().find_map(|attribute| match attribute {
        Nla::Other(other) if other.kind() == INET_DIAG_CGROUP_ID => {
            let mut bytes = [0; 8];
            (other.value_len() == bytes.len()).then(|| other.emit_value(&mut bytes))?;
            Some(u64::from_ne_bytes(bytes))
        }
        _ => None,
    });
    let end = |ip: std::net::IpAddr, port| std::net::SocketAddr::new(ip.to_canonical(), port);
    Socket {
        cookie: u64::from_ne_bytes(id.cookie),
        inode: header.inode,
        uid: header.uid,
        // Every socket tells of itself; what only waits does not.
        state: over(header.state, told.is_none()),
        local: end(id.source_address, id.source_port),
        remote: end(id.destination_address, id.destination_port),
        cgroup_id: cgroup_id.unwrap_or(0),
        info: told.and_then(|bytes| info(bytes, header.state)),
        holder: Holder::NotSought,
    }
}

/// `struct tcp_info` of include/uapi/linux/tcp.h as far as it is needed (4.19); newer kernels append.
#[repr(C)]
#[derive(FromBytes, Immutable, KnownLayout)]
struct TcpInfo {
    flags_and_options: [u8; 8],
    timeouts_to_ssthresh: [u32; 15],
    rtt: u32,
    rttvar_to_rcv_space: [u32; 7],
    total_retrans: u32,
    pacing_rates: [u64; 2],
    bytes_acked: u64,
    bytes_received: u64,
    segs_out: u32,
    segs_in: u32,
    notsent_bytes: u32,
    min_rtt: u32,
    data_segs_in_and_out: [u32; 2],
    delivery_rate_to_delivered_ce: [u64; 5],
    bytes_sent: u64,
    bytes_retrans: u64,
}

/// `None` from a kernel that counts less.
fn info(bytes: &[u8], number: u8) -> Option<Info> {
    let (info, _) = TcpInfo::read_from_prefix(bytes).ok()?;
    // The kernel counts the peer's FIN as a byte.
    let fin = matches!(number, state::CLOSE_WAIT | state::LAST_ACK | state::CLOSING);
    Some(Info {
        counts: Counts {
            sent_bytes: info.bytes_sent.saturating_sub(info.bytes_retrans),
            received_bytes: info.bytes_received.saturating_sub(fin.into()),
            sent_packets: info.segs_out,
            received_packets: info.segs_in,
            retransmits: info.total_retrans,
            reserved: 0,
        },
        srtt_us: info.rtt,
        rtt_min_us: info.min_rtt,
    })
}
