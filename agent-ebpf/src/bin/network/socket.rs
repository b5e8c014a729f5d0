//! What a socket says: who it is, whose, and what went over it.

use crate::OFFSETS;
use agent_common::network::{Connection, Counts, Ends, Owner, Tcp, family, missing, role};
use agent_ebpf::{
    admit::SETTINGS,
    constant,
    memory::{Memory as _, Typed},
};
use aya_ebpf::helpers::generated::{bpf_get_current_task_btf, bpf_get_socket_cookie, bpf_skc_to_tcp_sock};

/// `PF_KTHREAD`, include/linux/sched.h
const KERNEL_THREAD: u32 = 0x0020_0000;

/// Writes every field of a record.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "inlined; a struct of them would go over the stack")]
pub unsafe fn describe(
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
        (*out).key = key;
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
        match addresses(sock) {
            Some(ends) => {
                (*out).ends = ends;
                // `skc_num` is taken back before the last change of state is told.
                if let Some(port) = Typed::read::<u16>(tcp, constant!(OFFSETS.tcp_local_port)) {
                    (*out).ends.local_port = u16::from_be(port);
                }
            }
            None => {
                absent |= missing::ADDRESSES;
                (*out).ends = Ends::default();
            }
        }
        (*out).namespace = namespace_of(sock);
        (*out).interface = Typed::read(sock, constant!(OFFSETS.sock_interface)).unwrap_or(0);
        (*out).error = Typed::read(sock, constant!(OFFSETS.sock_err)).unwrap_or(0);
        match cgroup_id(sock) {
            Some(id) => (*out).cgroup_id = id,
            None => {
                absent |= missing::CGROUP;
                (*out).cgroup_id = 0;
            }
        }
        (*out).counts = match counts(sock, tcp) {
            Some(counts) => counts,
            None => {
                absent |= missing::COUNTS;
                (*out).reported
            }
        };
        (*out).reserved = 0;
        let srtt: Option<u32> = Typed::read(tcp, constant!(OFFSETS.tcp_srtt));
        let smallest: Option<u32> = match constant!(OFFSETS.tcp_rtt_min) {
            agent_common::ABSENT => None,
            // The value of the first sample.
            offset => Typed::read(tcp, offset + 4),
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
pub unsafe fn addresses(sock: *const u8) -> Option<Ends> {
    unsafe {
        let address_family: u16 = Typed::read(sock, constant!(OFFSETS.common_family))?;
        let local_port: u16 = Typed::read(sock, constant!(OFFSETS.common_local_port))?;
        let remote_port: u16 = Typed::read(sock, constant!(OFFSETS.common_remote_port))?;
        let (local, remote): ([u64; 2], [u64; 2]) = if address_family == family::INET {
            (
                address4(Typed::read(sock, constant!(OFFSETS.common_local4))?),
                address4(Typed::read(sock, constant!(OFFSETS.common_remote4))?),
            )
        } else {
            (
                Typed::read(sock, constant!(OFFSETS.common_local6))?,
                Typed::read(sock, constant!(OFFSETS.common_remote6))?,
            )
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
pub unsafe fn namespace_of(sock: *const u8) -> u32 {
    unsafe {
        let net: Option<*const u8> = Typed::read(sock, constant!(OFFSETS.common_net));
        net.and_then(|net| Typed::read(net, constant!(OFFSETS.net_inum))).unwrap_or(0)
    }
}

/// An IPv4 address as the first four of sixteen bytes.
#[inline(always)]
pub fn address4(address: u32) -> [u64; 2] {
    [u64::from(address), 0]
}

#[inline(always)]
unsafe fn counts(sock: *const u8, tcp: *const u8) -> Option<Counts> {
    unsafe {
        // The peer's FIN takes a sequence number, and so counts as a byte (`tcp_fin`).
        let flags: u64 = Typed::read(sock, constant!(OFFSETS.common_flags))?;
        let end = flags >> (constant!(OFFSETS.sock_done) & 63) & 1;
        let sent: u64 = Typed::read(tcp, constant!(OFFSETS.tcp_bytes_sent))?;
        let again: u64 = Typed::read(tcp, constant!(OFFSETS.tcp_bytes_retrans))?;
        Some(Counts {
            sent_bytes: sent - again,
            received_bytes: Typed::read::<u64>(tcp, constant!(OFFSETS.tcp_bytes_received))? - end,
            sent_packets: Typed::read(tcp, constant!(OFFSETS.tcp_segs_out))?,
            received_packets: Typed::read(tcp, constant!(OFFSETS.tcp_segs_in))?,
            retransmits: Typed::read(tcp, constant!(OFFSETS.tcp_total_retrans))?,
            reserved: 0,
        })
    }
}

#[inline(always)]
unsafe fn cgroup_id(sock: *const u8) -> Option<u64> {
    unsafe {
        let cgroup: *const u8 = Typed::read(sock, constant!(OFFSETS.sock_cgroup))?;
        let kn: *const u8 = Typed::read(cgroup, constant!(OFFSETS.cgroup_kn))?;
        Typed::read(kn, constant!(OFFSETS.kernfs_id))
    }
}

/// Makes the current task the owner, unless it is one of the kernel's: such a
/// thread closes for others.
#[inline(always)]
pub fn own(sock: *const u8, entry: *mut Connection) {
    let owner = current_owner(uid(sock));
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
pub fn current_owner(uid: u32) -> Owner {
    // SAFETY: no arguments, no side effect.
    let task = unsafe { bpf_get_current_task_btf() } as *const u8;
    owner_of(task, uid)
}

#[inline(always)]
pub fn owner_of(task: *const u8, uid: u32) -> Owner {
    let mut owner = Owner { uid, ..Owner::default() };
    unsafe {
        let flags: u32 = Typed::read(task, constant!(OFFSETS.task_flags)).unwrap_or(0);
        if flags & KERNEL_THREAD != 0 {
            return owner;
        }
        owner.pid = Typed::read(task, constant!(OFFSETS.task_tgid)).unwrap_or(0);
        let leader: Option<*const u8> = Typed::read(task, constant!(OFFSETS.task_group_leader));
        if let Some(leader) = leader {
            owner.start_ns = Typed::read(leader, constant!(OFFSETS.task_start)).unwrap_or(0);
            if let Some(comm) = Typed::read::<[u64; 2]>(leader, constant!(OFFSETS.task_comm)) {
                owner.comm = core::mem::transmute::<[u64; 2], [u8; 16]>(comm);
            }
        }
    }
    owner
}

#[inline(always)]
pub fn uid(sock: *const u8) -> u32 {
    unsafe { Typed::read(sock, constant!(OFFSETS.sock_uid)) }.unwrap_or(0)
}

/// The socket as a TCP socket; null if it is none.
#[inline(always)]
pub fn tcp_sock(sock: *const u8) -> *const u8 {
    // SAFETY: the verifier checks the type.
    (unsafe { bpf_skc_to_tcp_sock(sock.cast_mut().cast()) }) as *const u8
}

/// A number that no other socket of this boot has (5.12 for tracing programs).
#[inline(always)]
pub fn cookie(sock: *const u8) -> u64 {
    // SAFETY: the verifier checks the type.
    unsafe { bpf_get_socket_cookie(sock.cast_mut().cast()) }
}
