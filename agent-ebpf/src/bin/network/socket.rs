//! What a socket says: who it is, whose, and what went over it.

use crate::OFFSETS;
use agent_common::network::{Connection, Counts, Ends, Owner, Tcp, family, missing, role};
use agent_ebpf::{
    admit::SETTINGS,
    constant,
    memory::{Memory, Probed, Typed},
};
use aya_ebpf::helpers::generated::{
    bpf_get_current_task, bpf_get_current_task_btf, bpf_get_socket_cookie, bpf_skc_to_tcp_sock,
};

/// `PF_KTHREAD`, include/linux/sched.h
const KERNEL_THREAD: u32 = 0x0020_0000;

/// Writes every field of a record.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "inlined; a struct of them would go over the stack")]
pub unsafe fn describe<M: Socket>(
    out: *mut Tcp,
    kind: u32,
    sock: *const u8,
    tcp: *const u8,
    key: u64,
    entry: Option<*mut Connection>,
    owner: &Owner,
    before: u8,
    now: u64,
) {
    let mut absent = 0;
    unsafe {
        (*out).kind = kind;
        (*out).time_ns = now;
        (*out).key = M::identity(key, entry);
        (*out).owner = *owner;
        (*out).state = before;
        match entry {
            Some(entry) => {
                (*out).begin_ns = (*entry).begin_ns;
                (*out).established_ns = (*entry).established_ns;
                (*out).reported = (*entry).reported;
                (*out).role = (*entry).role as u8;
            }
            None => {
                absent |= missing::ENTRY;
                (*out).begin_ns = 0;
                (*out).established_ns = 0;
                (*out).reported = Counts::default();
                (*out).role = role::UNKNOWN;
            }
        }
        match addresses::<M>(sock) {
            Some(ends) => {
                (*out).ends = ends;
                // `skc_num` is taken back before the last change of state is told.
                if let Some(port) = M::read::<u16>(tcp, constant!(OFFSETS.tcp_local_port)) {
                    (*out).ends.local_port = u16::from_be(port);
                }
            }
            None => {
                absent |= missing::ADDRESSES;
                (*out).ends = Ends::default();
            }
        }
        (*out).namespace = namespace_of::<M>(sock);
        (*out).interface = M::read(sock, constant!(OFFSETS.sock_interface)).unwrap_or(0);
        (*out).error = M::read(sock, constant!(OFFSETS.sock_err)).unwrap_or(0);
        match cgroup_id::<M>(sock) {
            Some(id) => (*out).cgroup_id = id,
            None => {
                absent |= missing::CGROUP;
                (*out).cgroup_id = 0;
            }
        }
        (*out).counts = match counts::<M>(sock, tcp) {
            Some(counts) => counts,
            None => {
                absent |= missing::COUNTS;
                (*out).reported
            }
        };
        (*out).reserved = 0;
        let srtt: Option<u32> = M::read(tcp, constant!(OFFSETS.tcp_srtt));
        let smallest: Option<u32> = match constant!(OFFSETS.tcp_rtt_min) {
            agent_common::ABSENT => None,
            // The value of the first sample.
            offset => M::read(tcp, offset + 4),
        };
        if srtt.is_none() || smallest.is_none() {
            absent |= missing::RTT;
        }
        (*out).srtt_us = srtt.unwrap_or(0) >> 3;
        (*out).rtt_min_us = smallest.unwrap_or(0);
        (*out).missing = absent;
    }
}

/// The ends of a connection; `None` if the kernel keeps them elsewhere.
#[inline(always)]
pub unsafe fn addresses<M: Socket>(sock: *const u8) -> Option<Ends> {
    unsafe {
        let address_family: u16 = M::read(sock, constant!(OFFSETS.common_family))?;
        let local_port: u16 = M::read(sock, constant!(OFFSETS.common_local_port))?;
        let remote_port: u16 = M::read(sock, constant!(OFFSETS.common_remote_port))?;
        let (local, remote): ([u64; 2], [u64; 2]) = if address_family == family::INET {
            (
                address4(M::read(sock, constant!(OFFSETS.common_local4))?),
                address4(M::read(sock, constant!(OFFSETS.common_remote4))?),
            )
        } else {
            (M::read(sock, constant!(OFFSETS.common_local6))?, M::read(sock, constant!(OFFSETS.common_remote6))?)
        };
        Some(Ends {
            family: address_family,
            local_port,
            remote_port: u16::from_be(remote_port),
            reserved: 0,
            local: core::mem::transmute::<[u64; 2], [u8; 16]>(local),
            remote: core::mem::transmute::<[u64; 2], [u8; 16]>(remote),
        })
    }
}

/// Inode number of the network namespace; 0 if it is not known.
#[inline(always)]
pub unsafe fn namespace_of<M: Socket>(sock: *const u8) -> u32 {
    unsafe {
        let net: Option<*const u8> = M::read(sock, constant!(OFFSETS.common_net));
        net.and_then(|net| M::read(net, constant!(OFFSETS.net_inum))).unwrap_or(0)
    }
}

/// An IPv4 address as the first four of sixteen bytes.
#[inline(always)]
pub fn address4(address: u32) -> [u64; 2] {
    [u64::from(address), 0]
}

#[inline(always)]
unsafe fn counts<M: Socket>(sock: *const u8, tcp: *const u8) -> Option<Counts> {
    unsafe {
        // The peer's FIN takes a sequence number, and so counts as a byte (`tcp_fin`).
        let flags: u64 = M::read(sock, constant!(OFFSETS.common_flags))?;
        let end = flags >> (constant!(OFFSETS.sock_done) & 63) & 1;
        let sent: u64 = M::read(tcp, constant!(OFFSETS.tcp_bytes_sent))?;
        let again: u64 = M::read(tcp, constant!(OFFSETS.tcp_bytes_retrans))?;
        Some(Counts {
            sent_bytes: sent - again,
            received_bytes: M::read::<u64>(tcp, constant!(OFFSETS.tcp_bytes_received))? - end,
            sent_packets: M::read(tcp, constant!(OFFSETS.tcp_segs_out))?,
            received_packets: M::read(tcp, constant!(OFFSETS.tcp_segs_in))?,
            retransmits: M::read(tcp, constant!(OFFSETS.tcp_total_retrans))?,
            reserved: 0,
        })
    }
}

#[inline(always)]
unsafe fn cgroup_id<M: Socket>(sock: *const u8) -> Option<u64> {
    unsafe {
        let cgroup: *const u8 = M::read(sock, constant!(OFFSETS.sock_cgroup))?;
        let kn: *const u8 = M::read(cgroup, constant!(OFFSETS.cgroup_kn))?;
        M::read(kn, constant!(OFFSETS.kernfs_id))
    }
}

/// Makes the current task the owner, unless it is one of the kernel's: such a
/// thread closes for others.
#[inline(always)]
pub fn own<M: Socket>(sock: *const u8, entry: *mut Connection) {
    let owner = current_owner::<M>(uid::<M>(sock));
    // SAFETY: an array's value lives as long as the map.
    unsafe {
        // A look holds each file for a moment: whose last user closes it then, the agent closes.
        if owner.pid != 0 && owner.pid != constant!(SETTINGS.agent_pid) {
            (*entry).owner = owner;
        }
    }
}

/// The process of the current task; pid 0 for a thread of the kernel's.
#[inline(always)]
pub fn current_owner<M: Socket>(uid: u32) -> Owner {
    owner_of::<M>(M::current_task(), uid)
}

#[inline(always)]
pub fn owner_of<M: Socket>(task: *const u8, uid: u32) -> Owner {
    let mut owner = Owner { uid, ..Owner::default() };
    unsafe {
        let flags: u32 = M::read(task, constant!(OFFSETS.task_flags)).unwrap_or(0);
        if flags & KERNEL_THREAD != 0 {
            return owner;
        }
        owner.pid = M::read(task, constant!(OFFSETS.task_tgid)).unwrap_or(0);
        let leader: Option<*const u8> = M::read(task, constant!(OFFSETS.task_group_leader));
        if let Some(leader) = leader {
            owner.start_ns = M::read(leader, constant!(OFFSETS.task_start)).unwrap_or(0);
            if let Some(comm) = M::read::<[u64; 2]>(leader, constant!(OFFSETS.task_comm)) {
                owner.comm = core::mem::transmute::<[u64; 2], [u8; 16]>(comm);
            }
        }
    }
    owner
}

#[inline(always)]
pub fn uid<M: Socket>(sock: *const u8) -> u32 {
    unsafe { M::read(sock, constant!(OFFSETS.sock_uid)) }.unwrap_or(0)
}

/// A way to read a socket, with what goes with it: how it is told from other sockets and
/// from what is no TCP socket, and how the current task is had.
pub trait Socket: Memory {
    /// Under what the table has the socket. All programs that use the table must agree on it.
    fn key(sock: *const u8) -> u64;

    /// Whether the next socket may have the key of one that is gone.
    const KEYS_COME_AGAIN: bool;

    /// A number that no other connection of this boot has; without an entry only a key.
    unsafe fn identity(key: u64, entry: Option<*mut Connection>) -> u64;

    /// The socket as a TCP socket; null if it is none.
    fn tcp(sock: *const u8) -> *const u8;

    /// The task that runs.
    fn current_task() -> *const u8;
}

/// By typed pointers: the socket's cookie (5.12 for tracing programs).
impl Socket for Typed {
    const KEYS_COME_AGAIN: bool = false;

    #[inline(always)]
    fn key(sock: *const u8) -> u64 {
        // SAFETY: the verifier checks the type.
        unsafe { bpf_get_socket_cookie(sock.cast_mut().cast()) }
    }

    #[inline(always)]
    unsafe fn identity(key: u64, _: Option<*mut Connection>) -> u64 {
        key
    }

    #[inline(always)]
    fn tcp(sock: *const u8) -> *const u8 {
        // SAFETY: the verifier checks the type.
        (unsafe { bpf_skc_to_tcp_sock(sock.cast_mut().cast()) }) as *const u8
    }

    #[inline(always)]
    fn current_task() -> *const u8 {
        // SAFETY: no arguments, no side effect.
        (unsafe { bpf_get_current_task_btf() }) as *const u8
    }
}

/// By addresses: that of the socket. The next connection may have it again, so for the
/// user side it is mixed with the time at which this one began.
impl Socket for Probed {
    const KEYS_COME_AGAIN: bool = true;

    #[inline(always)]
    fn key(sock: *const u8) -> u64 {
        // One to one (the factor is odd), and sockets, which are far apart, go to all buckets.
        (sock as u64).wrapping_mul(MIX).rotate_left(32)
    }

    #[inline(always)]
    unsafe fn identity(key: u64, entry: Option<*mut Connection>) -> u64 {
        match entry {
            // SAFETY: an array's value lives as long as the map.
            Some(entry) => key ^ unsafe { (*entry).begin_ns }.wrapping_mul(MIX),
            None => key,
        }
    }

    #[inline(always)]
    fn tcp(sock: *const u8) -> *const u8 {
        const IPPROTO_TCP: u16 = 6;
        let (protocol, of): (Option<u16>, Option<u16>) = unsafe {
            (Self::read(sock, constant!(OFFSETS.sock_protocol)), Self::read(sock, constant!(OFFSETS.common_family)))
        };
        let is_internet = of == Some(family::INET) || of == Some(family::INET6);
        if is_internet && protocol == Some(IPPROTO_TCP) { sock } else { core::ptr::null() }
    }

    #[inline(always)]
    fn current_task() -> *const u8 {
        // SAFETY: no arguments, no side effect.
        (unsafe { bpf_get_current_task() }) as *const u8
    }
}

/// 2^64 by the golden ratio, made odd (Fibonacci hashing).
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
