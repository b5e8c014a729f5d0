//! A look at every open file of every process.

use crate::{
    OFFSETS,
    socket::{Socket, describe, owner_of, uid},
    table::{find, forget, insert},
};
use agent_common::network::{Connection, Counts, Look, Owner, Tcp, kind, look, state};
use agent_ebpf::{
    admit::now,
    constant,
    memory::{Memory as _, Probed, Typed},
};
use aya_ebpf::{
    bindings::seq_file,
    helpers::generated::{bpf_seq_write, bpf_sock_from_file},
    macros::map,
    maps::{Array, PerCpuArray},
};

/// One word: what the next look is for.
#[map]
static LOOK: Array<Look> = Array::with_max_entries(1, 0);

/// Where a record is made: it is too large for the stack. One reader looks at a time.
#[map]
static RECORD: PerCpuArray<Tcp> = PerCpuArray::with_max_entries(1, 0);

/// `struct bpf_iter__task_file`: each pointer takes 8 bytes.
#[repr(C)]
pub struct TaskFile {
    meta: *const *mut seq_file,
    task: *const u8,
    fd: u64,
    file: *const u8,
}

/// A look at every open file of every process, in every namespace: finds
/// connections with their owners. Runs when the user side reads its file.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub extern "C" fn look(ctx: *const TaskFile) -> i32 {
    let _ = try_look::<Typed>(ctx, socket_of);
    0
}

/// The same for programs that know sockets by their addresses.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub extern "C" fn look_by_address(ctx: *const TaskFile) -> i32 {
    let _ = try_look::<Probed>(ctx, socket_at);
    0
}

/// The socket of a file, `struct socket` (5.11).
#[inline(always)]
fn socket_of(file: *const u8) -> *const u8 {
    // SAFETY: the verifier checks the type.
    (unsafe { bpf_sock_from_file(file.cast_mut().cast()) }) as *const u8
}

/// The same without the helper (`sock_from_file`, net/socket.c).
#[inline(always)]
fn socket_at(file: *const u8) -> *const u8 {
    const S_IFMT: u16 = 0o170_000;
    const S_IFSOCK: u16 = 0o140_000;
    unsafe {
        let inode: Option<*const u8> = Typed::read(file, constant!(OFFSETS.file_inode));
        let mode: Option<u16> = match inode {
            Some(inode) => Typed::read(inode, constant!(OFFSETS.inode_mode)),
            None => None,
        };
        match mode {
            Some(mode) if mode & S_IFMT == S_IFSOCK => {
                Typed::read(file, constant!(OFFSETS.file_private)).unwrap_or(core::ptr::null())
            }
            _ => core::ptr::null(),
        }
    }
}

#[inline(always)]
fn try_look<M: Socket>(ctx: *const TaskFile, socket_of: impl FnOnce(*const u8) -> *const u8) -> Option<()> {
    // SAFETY: the verifier knows the context's type.
    let (meta, task, file) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*ctx).meta),
            core::ptr::read_volatile(&raw const (*ctx).task),
            core::ptr::read_volatile(&raw const (*ctx).file),
        )
    };
    // After the last file there is none.
    if file.is_null() || task.is_null() {
        return None;
    }
    let sock: *const u8 = unsafe { M::read(socket_of(file), constant!(OFFSETS.socket_sock)) }?;
    let tcp = M::tcp(sock);
    if tcp.is_null() {
        return None;
    }
    let now_state: u8 = unsafe { M::read(tcp, constant!(OFFSETS.common_state)) }?;
    let asked = LOOK.get(0)?;
    if now_state == state::LISTEN && asked.what != look::OWNERS && asked.part == 0 {
        let owner = owner_of::<M>(task, uid::<M>(tcp));
        // SAFETY: as below. A socket of several processes is told several times.
        unsafe { write::<M>(meta, tcp, 0, None, &owner, now_state) }?;
        return Some(());
    }
    if !matches!(now_state, state::ESTABLISHED | state::CLOSE_WAIT | state::FIN_WAIT1 | state::FIN_WAIT2) {
        return None;
    }
    let key = M::key(tcp);
    let known = find(key);
    let entry = match known {
        Some(entry) => entry,
        None => {
            let entry = insert(key)?;
            // It may have ended since its state was read: nobody would free the entry.
            let state_now: u8 = unsafe { M::read(tcp, constant!(OFFSETS.common_state)) }?;
            if state_now == state::CLOSE {
                forget(entry);
                return None;
            }
            entry
        }
    };
    let holder = owner_of::<M>(task, uid::<M>(tcp));
    // SAFETY: an array's value lives as long as the map.
    unsafe {
        let mut owner = (*entry).owner;
        let had_owner = owner.pid != 0;
        // The owner stays, unless a whole look went by without finding it.
        if !had_owner || (*entry).owner_look + 1 < asked.number {
            owner = holder;
        }
        let wanted = match asked.what {
            look::OWNERS => !had_owner,
            _ => asked.parts == 0 || key % u64::from(asked.parts) == u64::from(asked.part),
        };
        if wanted && (*entry).look != asked.number {
            let counts = write::<M>(meta, tcp, key, Some(entry), &owner, now_state)?;
            (*entry).look = asked.number;
            if asked.what != look::OWNERS && (*entry).begin_ns <= asked.before_ns {
                (*entry).reported = counts;
            }
        }
        (*entry).owner = owner;
        if owner.pid == holder.pid {
            (*entry).owner_look = asked.number;
        }
    }
    Some(())
}

/// Hands a record to the reader of the look's file. `None`: no space is left,
/// and the kernel will call again with the same file and an empty page.
#[inline(always)]
unsafe fn write<M: Socket>(
    meta: *const *mut seq_file,
    tcp: *const u8,
    key: u64,
    entry: Option<*mut Connection>,
    owner: &Owner,
    now_state: u8,
) -> Option<Counts> {
    let out = RECORD.get_ptr_mut(0)?;
    unsafe {
        describe::<M>(out, kind::ALIVE, tcp, tcp, key, entry, owner, now_state, now());
        let file = core::ptr::read_volatile(meta);
        let written = bpf_seq_write(file, out.cast_const().cast(), size_of::<Tcp>() as u32);
        (written == 0).then(|| (*out).counts)
    }
}
