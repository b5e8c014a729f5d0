//! Offsets found in a kernel's BTF are those that other programs find there, on
//! recorded kernels and on the running one; bytes that are no BTF end in an error.
#![allow(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

use agent_common::{ABSENT, Source};
use leaf::{
    kernel::btf::{Btf, BtfError, VMLINUX},
    probes::ROOMS,
};
use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
};
use std::{collections::HashMap, fs, io::Write as _, path::Path, process::Command};

const INT: u32 = 1;
const PTR: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const TYPEDEF: u32 = 8;
const CONST: u32 = 10;
const FUNC_PROTO: u32 = 13;
const DATASEC: u32 = 15;
const ENUM64: u32 = 19;
/// Bit 31 of a type's info: members tell the size of a bit field, too.
const KIND_FLAG: u32 = 1 << 31;

/// A recorded kernel: its name, its BTF, and what other programs find there, by room and field.
struct Kernel {
    release: String,
    btf: Vec<u8>,
    expected: HashMap<(&'static str, String), u32>,
}

fn recorded_kernels() -> Vec<Kernel> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/btf");
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let kernels: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "btf"))
        .map(|path| Kernel {
            release: path.file_stem().unwrap().to_str().unwrap().into(),
            btf: fs::read(&path).unwrap(),
            expected: ROOMS.iter().flat_map(|room| expected_of(room.name, &path)).collect(),
        })
        .collect();
    assert!(kernels.len() >= 4, "only {} recorded kernels", kernels.len());
    kernels
}

/// The lines of the file beside a recorded BTF that tells what a room must find there.
fn expected_of(room: &'static str, btf: &Path) -> Vec<((&'static str, String), u32)> {
    let path = btf.with_extension(format!("{room}.txt"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let line = |line: &str| {
        let (field, number) = line.split_once(' ').unwrap();
        ((room, field.into()), if number == "absent" { ABSENT } else { number.parse().unwrap() })
    };
    text.lines().map(line).collect()
}

/// Room, field and source of what BTF can tell: all but the records of classic tracepoints.
fn sources() -> impl Iterator<Item = (&'static str, &'static str, &'static Source)> {
    let all = ROOMS.iter().flat_map(|room| room.sources.iter().map(|(field, source)| (room.name, *field, source)));
    all.filter(|(_, _, source)| !matches!(source, Source::Tracepoint(..)))
}

/// The enums that rooms want to name the enumerators of.
fn enums() -> impl Iterator<Item = &'static str> {
    ROOMS.iter().flat_map(|room| room.enums).copied()
}

/// Parses as the loader does: once, for all rooms.
fn parse(data: &[u8]) -> Result<Btf<'_>, BtfError> {
    let enums: Vec<Source> = enums().map(|name| Source::Enumerator(name, "")).collect();
    let sources = ROOMS.iter().flat_map(|room| room.sources).map(|(_, source)| source);
    Btf::parse(data, sources.chain(&enums))
}

/// All answers, in the order of the sources, and the enumerators.
type Answers = (Vec<u32>, Vec<Vec<(u32, String)>>);

fn answers(data: &[u8]) -> Result<Answers, BtfError> {
    let btf = parse(data)?;
    // Each is asked for, whatever the others say.
    let sources = ROOMS.iter().flat_map(|room| room.sources);
    let found: Vec<_> = sources.map(|(_, source)| btf.find(source)).collect();
    let named: Vec<_> = enums().map(|name| btf.enumerators(name)).collect();
    Ok((found.into_iter().collect::<Result<_, _>>()?, named.into_iter().collect::<Result<_, _>>()?))
}

fn find(data: &[u8], source: Source) -> Result<u32, BtfError> {
    Btf::parse(data, [&source])?.find(&source)
}

/// A BTF made by hand.
#[derive(Default)]
struct Made {
    types: Vec<u8>,
    strings: Vec<u8>,
}

impl Made {
    /// Adds a type; the first has the id 1. `flags` are added to `vlen`'s word.
    fn push(&mut self, kind: u32, name: &str, vlen: u32, size_or_type: u32, rest: &[u32]) {
        let common = [self.string(name), kind << 24 | vlen, size_or_type];
        self.types.extend(common.iter().chain(rest).flat_map(|word| word.to_ne_bytes()));
    }

    /// Adds a struct or union of members: name, type, bit offset.
    fn push_members(&mut self, kind: u32, name: &str, flags: u32, members: &[(&str, u32, u32)]) {
        let rest: Vec<u32> = members.iter().flat_map(|&(name, ty, bits)| [self.string(name), ty, bits]).collect();
        self.push(kind, name, members.len() as u32 | flags, 64, &rest);
    }

    fn string(&mut self, string: &str) -> u32 {
        if self.strings.is_empty() {
            self.strings.push(0);
        }
        if string.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32;
        self.strings.extend(string.bytes().chain([0]));
        at
    }

    fn bytes(&self) -> Vec<u8> {
        self.bytes_with_header(24)
    }

    /// The bytes, with a header of so many.
    fn bytes_with_header(&self, header_len: u32) -> Vec<u8> {
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        let mut bytes = 0xeb9f_u16.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        bytes.extend([header_len, 0, types, types, strings].iter().flat_map(|word| word.to_ne_bytes()));
        bytes.resize(header_len as usize, 0xff);
        bytes.extend(self.types.iter().chain(&self.strings));
        bytes
    }
}

/// Says on the terminal that a test cannot go on here.
///
/// # Panics
/// If `LEAF_TESTS_REQUIRE_ALL` is `1`.
fn skip(reason: &str) {
    assert!(std::env::var("LEAF_TESTS_REQUIRE_ALL").as_deref() != Ok("1"), "{reason}");
    let thread = std::thread::current();
    // Not by a macro: the test runner would hide it, since the test passes.
    let _ = writeln!(std::io::stderr(), "SKIPPED {}: {reason}", thread.name().unwrap_or("a test"));
}

/// Bit offsets by struct and member, as bpftool prints them.
fn members_by_bpftool(dump: &str) -> HashMap<(&str, &str), u32> {
    let mut members = HashMap::new();
    let mut inside = None;
    for line in dump.lines() {
        let name = line.split('\'').nth(1).unwrap_or_default();
        if let Some(member) = line.strip_prefix('\t') {
            let bits = member.split("bits_offset=").nth(1).and_then(|rest| rest.split(' ').next());
            if let (Some(of), Some(bits)) = (inside, bits) {
                members.insert((of, name), bits.parse().unwrap());
            }
        } else {
            inside = line.contains("] STRUCT '").then_some(name);
        }
    }
    members
}

#[test]
fn offsets_on_a_recorded_kernel_are_those_that_other_programs_find() {
    for Kernel { release, btf, expected } in recorded_kernels() {
        let parsed = parse(&btf).unwrap();
        for (room, field, source) in sources() {
            let number = expected.get(&(room, field.into())).copied();
            assert_eq!(parsed.find(source).ok(), number, "{field} of the {room} room on {release}");
        }
        assert_eq!(expected.len(), sources().count(), "{release}");
    }
}

#[test]
fn tracepoints_got_arguments_between_the_recorded_kernels() {
    // Kernel; arguments of sched_process_exit and of kfree_skb, with the tracepoint's own data.
    let expected = [("5.10.", 2, 3), ("6.1.", 2, 4), ("6.12.", 2, 5), ("7.3.", 3, 5)];
    for Kernel { release, btf, .. } in recorded_kernels() {
        let arguments = |tracepoint| find(&btf, Source::Arguments(tracepoint)).unwrap();
        let &(_, exit, kfree_skb) = expected.iter().find(|(kernel, ..)| release.starts_with(kernel)).unwrap();
        assert_eq!(arguments("sched_process_exit"), exit, "{release}");
        assert_eq!(arguments("kfree_skb"), kfree_skb, "{release}");
    }
}

#[test]
fn the_reasons_of_a_drop_are_those_of_the_kernel() {
    // Kernel; how many reasons, and the value of one of them, as bpftool prints them.
    let expected = [("5.10.", 0, None), ("6.1.", 66, Some(2)), ("6.12.", 102, Some(3)), ("7.3.", 128, Some(3))];
    for Kernel { release, btf, .. } in recorded_kernels() {
        let reasons = parse(&btf).unwrap().enumerators("skb_drop_reason").unwrap();
        let value = |name| reasons.iter().find(|(_, known)| known == name).map(|(value, _)| *value);
        let &(_, count, no_socket) = expected.iter().find(|(kernel, ..)| release.starts_with(kernel)).unwrap();
        assert_eq!(reasons.len(), count, "{release}");
        assert_eq!(value("SKB_DROP_REASON_NO_SOCKET"), no_socket, "{release}");
    }
}

#[test]
fn a_path_enters_the_sockets_that_a_socket_extends() {
    for Kernel { release, btf, .. } in recorded_kernels() {
        let find = |of, path| find(&btf, Source::Member(of, path)).unwrap();
        let state = find("sock", "__sk_common.skc_state");
        assert_eq!(state, 18, "skc_state follows two addresses, a hash, two ports and a family: {release}");
        assert_eq!(find("tcp_sock", "inet_conn.icsk_inet.sk.__sk_common.skc_state"), state, "{release}");
        assert_ne!(find("tcp_sock", "srtt_us"), ABSENT, "{release}");
    }
}

#[test]
fn a_classic_tracepoints_record_is_absent_since_btf_does_not_tell_it() {
    let kernel = &recorded_kernels()[0];
    assert_eq!(find(&kernel.btf, Source::Tracepoint("sched/sched_process_exec", "filename")), Ok(ABSENT));
}

#[test]
fn the_running_kernel_has_every_offset() {
    let Ok(data) = fs::read(VMLINUX) else {
        return skip("this kernel shows no BTF");
    };
    let btf = parse(&data).unwrap();
    let absent: Vec<_> = sources().filter(|(_, _, source)| btf.find(source) == Ok(ABSENT)).collect();
    assert!(absent.is_empty(), "{absent:?}");
}

#[test]
fn offsets_in_the_running_kernel_are_those_that_bpftool_prints() {
    let bpftool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/bin/bpftool");
    let (Ok(data), true) = (fs::read(VMLINUX), bpftool.exists()) else {
        return skip("no bpftool (`cargo xtask setup` brings it), or this kernel shows no BTF");
    };
    let output = Command::new(bpftool).args(["btf", "dump", "file", VMLINUX, "format", "raw"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let dump = String::from_utf8(output.stdout).unwrap();
    let printed = members_by_bpftool(&dump);
    let btf = parse(&data).unwrap();
    let mut compared = 0;
    for (room, field, source) in sources() {
        // Members of nested structs are printed elsewhere.
        if let Source::Member(of, path) = source
            && let Some(bits) = printed.get(&(*of, *path))
        {
            assert_eq!(btf.find(source), Ok(bits / 8), "{field} of the {room} room");
            compared += 1;
        }
    }
    assert!(compared >= 50, "only {compared} members to compare");
}

#[test]
fn a_member_inside_nameless_structs_is_found_at_the_sum_of_the_offsets() {
    let mut made = Made::default();
    made.push_members(STRUCT, "", 0, &[("pad", 0, 0), ("deep", 0, 32)]);
    made.push_members(UNION, "", 0, &[("other", 0, 0), ("", 1, 0)]);
    made.push(CONST, "", 0, 2, &[]);
    // The nameless member can have a named type, as in linux_binprm of 7.3.
    made.push_members(STRUCT, "extended", 0, &[("", 3, 64)]);
    made.push_members(STRUCT, "outer", 0, &[("first", 0, 0), ("", 4, 128)]);
    assert_eq!(find(&made.bytes(), Source::Member("outer", "deep")), Ok((128 + 64 + 32) / 8));
    assert_eq!(find(&made.bytes(), Source::Member("outer", "deeper")), Ok(ABSENT));
}

#[test]
fn the_size_of_a_bit_field_is_no_part_of_an_offset() {
    let mut made = Made::default();
    made.push_members(STRUCT, "with_flag", KIND_FLAG, &[("flag", 0, 3 << 24 | 64), ("after", 0, 0xff_fff8)]);
    made.push_members(STRUCT, "large", 0, &[("far", 0, 3 << 24 | 64)]);
    assert_eq!(find(&made.bytes(), Source::Member("with_flag", "flag")), Ok(8));
    assert_eq!(find(&made.bytes(), Source::Member("with_flag", "after")), Ok(0xff_fff8 / 8));
    assert_eq!(find(&made.bytes(), Source::Member("large", "far")), Ok((3 << 24 | 64) / 8));
}

#[test]
fn a_path_passes_typedefs_but_no_pointers() {
    let mut made = Made::default();
    made.push_members(STRUCT, "inner", 0, &[("x", 0, 16)]);
    made.push(TYPEDEF, "inner_t", 0, 1, &[]);
    made.push(PTR, "", 0, 1, &[]);
    made.push_members(STRUCT, "outer", 0, &[("by_value", 2, 32), ("by_pointer", 3, 64)]);
    assert_eq!(find(&made.bytes(), Source::Member("outer", "by_value.x")), Ok(6));
    assert_eq!(find(&made.bytes(), Source::Member("outer", "by_pointer.x")), Ok(ABSENT));
    assert_eq!(find(&made.bytes(), Source::Member("outer", "by_value.x.y")), Ok(ABSENT));
}

#[test]
fn what_a_kernel_does_not_have_is_absent() {
    let mut made = Made::default();
    made.push_members(STRUCT, "there", 0, &[("x", 0, 0)]);
    made.push_members(UNION, "a_union", 0, &[("x", 0, 0)]);
    let value = made.string("a_value");
    made.push(ENUM, "an_enum", 1, 4, &[value, 7]);
    made.push(TYPEDEF, "btf_trace_no_function", 0, 1, &[]);
    for source in [
        Source::Member("there", "y"),
        Source::Member("not_there", "x"),
        Source::Member("a_union", "x"),
        Source::Enumerator("an_enum", "another_value"),
        Source::Enumerator("there", "a_value"),
        Source::Arguments("no_function"),
        Source::Arguments("not_there"),
    ] {
        assert_eq!(find(&made.bytes(), source), Ok(ABSENT), "{source:?}");
    }
    assert_eq!(find(&made.bytes(), Source::Enumerator("an_enum", "a_value")), Ok(7));
}

#[test]
fn types_of_every_known_kind_are_stepped_over() {
    let mut made = Made::default();
    for kind in 1..=19 {
        let words = match kind {
            INT | 14 | 17 => 1,
            ARRAY => 3,
            STRUCT | UNION | DATASEC | ENUM64 => 6,
            ENUM | FUNC_PROTO => 4,
            _ => 0,
        };
        let vlen = if words > 3 { 2 } else { 0 };
        made.push(kind, "", vlen, 0, &[u32::MAX; 6][..words]);
    }
    made.push_members(STRUCT, "last", 0, &[("x", 0, 8)]);
    assert_eq!(find(&made.bytes(), Source::Member("last", "x")), Ok(1));
}

#[test]
fn a_longer_header_and_more_than_65535_members_are_read() {
    let mut made = Made::default();
    let mut members = vec![("", 0, 0); 70_000];
    members.push(("last", 0, 24));
    made.push_members(STRUCT, "wide", 0, &members);
    made.push_members(STRUCT, "next", 0, &[("x", 0, 8)]);
    for header_len in [24, 32] {
        let bytes = made.bytes_with_header(header_len);
        assert_eq!(find(&bytes, Source::Member("wide", "last")), Ok(3));
        assert_eq!(find(&bytes, Source::Member("next", "x")), Ok(1));
    }
}

#[test]
fn bytes_that_are_no_complete_btf_are_an_error() {
    let mut made = Made::default();
    made.push(STRUCT, "cut", 2, 8, &[0, 0, 0]);
    assert!(matches!(parse(&made.bytes()), Err(BtfError::Truncated(_))));
    for kind in [0, 20, 127] {
        let mut made = Made::default();
        made.push(kind, "", 0, 0, &[]);
        assert_eq!(parse(&made.bytes()).err(), Some(BtfError::Kind(kind)));
    }
    assert!(matches!(parse(&[]), Err(BtfError::Truncated(_))));
    assert_eq!(parse(&0xeb9f_u16.swap_bytes().to_ne_bytes()).err(), Some(BtfError::Magic(0x9feb)));
}

#[test]
fn a_struct_that_contains_itself_without_a_name_ends() {
    let mut made = Made::default();
    made.push_members(STRUCT, "itself", 0, &[("", 1, 8); 200]);
    made.push_members(STRUCT, "one", 0, &[("", 3, 8); 200]);
    made.push_members(STRUCT, "two", 0, &[("", 2, 8); 200]);
    made.push(TYPEDEF, "btf_trace_loop", 0, 4, &[]);
    made.push_members(STRUCT, "by_typedef", 0, &[("", 4, 0), ("x", 0, 16)]);
    let bytes = made.bytes();
    assert_eq!(find(&bytes, Source::Member("itself", "x")), Ok(ABSENT));
    assert_eq!(find(&bytes, Source::Member("one", "x")), Ok(ABSENT));
    assert_eq!(find(&bytes, Source::Arguments("loop")), Ok(ABSENT));
    assert_eq!(find(&bytes, Source::Member("by_typedef", "x")), Ok(2));
}

#[test]
fn nameless_structs_that_fan_out_over_many_levels_end() {
    let mut made = Made::default();
    for level in 2..=100 {
        made.push_members(STRUCT, "", 0, &[("", level, u32::MAX); 100]);
    }
    made.push_members(STRUCT, "", 0, &[("x", 0, u32::MAX)]);
    made.push_members(STRUCT, "top", 0, &[("", 1, 0), ("y", 0, 8)]);
    assert_eq!(find(&made.bytes(), Source::Member("top", "y")), Ok(1));
    // 100 times 2^32 bits are more bytes than an offset can tell.
    assert_eq!(find(&made.bytes(), Source::Member("top", "x")), Ok(ABSENT));
}

#[test]
fn a_recorded_kernel_that_is_cut_off_is_an_error_or_gives_the_same_answers() {
    for Kernel { release, btf, .. } in recorded_kernels() {
        let whole = answers(&btf).unwrap();
        for len in 0..btf.len() {
            if let Ok(answers) = answers(&btf[..len]) {
                assert_eq!(answers, whole, "{release} cut off at {len}");
            }
        }
    }
}

/// Names that are asked for, and none.
const NAMES: [&str; 13] = [
    "",
    "task_struct",
    "se",
    "pid",
    "sum_exec_runtime",
    "css_set",
    "cgroup_subsys_id",
    "memory_cgrp_id",
    "btf_trace_sched_process_exit",
    "sk_buff",
    "sock",
    "sk_receive_queue",
    "qlen",
];

/// Types that name each other and themselves at random.
fn tangle() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![4 => Just(STRUCT), 2 => Just(UNION), 1 => Just(TYPEDEF), 1 => Just(CONST), 1 => Just(PTR)];
    let member = (select(&NAMES[..]), 0..30_u32, any::<u32>());
    let ty = (kind, select(&NAMES[..]), any::<bool>(), 0..30_u32, vec(member, 0..8));
    vec(ty, 1..30).prop_map(|types| {
        let mut made = Made::default();
        for (kind, name, kind_flag, to, members) in types {
            if matches!(kind, STRUCT | UNION) {
                made.push_members(kind, name, if kind_flag { KIND_FLAG } else { 0 }, &members);
            } else {
                made.push(kind, name, 0, to, &[]);
            }
        }
        made.bytes()
    })
}

proptest! {
    #[test]
    fn any_bytes_are_an_error_or_a_btf(bytes in vec(any::<u8>(), 0..2000)) {
        let _ = answers(&bytes);
    }

    #[test]
    fn any_bytes_behind_a_right_header_are_an_error_or_a_btf(types in vec(any::<u8>(), 0..2000), strings in vec(any::<u8>(), 0..200)) {
        let _ = answers(&Made { types, strings }.bytes());
    }

    #[test]
    fn types_that_name_each_other_at_random_end(bytes in tangle()) {
        let _ = answers(&bytes);
    }

    #[test]
    fn a_recorded_kernel_with_changed_bytes_is_an_error_or_a_btf(
        kernel in any::<Index>(),
        changes in vec((any::<Index>(), any::<u8>()), 1..20),
    ) {
        let mut kernels = recorded_kernels();
        let mut bytes = kernels.swap_remove(kernel.index(kernels.len())).btf;
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let _ = answers(&bytes);
    }
}
