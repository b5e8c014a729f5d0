//! Names of addresses, from the answers of name servers that processes of this
//! node have received. They are data from the network: bounded, and escaped.

use lru::LruCache;
use simple_dns::{OPCODE, Packet, PacketFlag, QTYPE, RCODE, rdata::RData};
use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroUsize,
    sync::Arc,
};

/// Addresses remembered; the one that was not used for longest is forgotten first.
const MAX_NAMES: NonZeroUsize = NonZeroUsize::new(8192).expect("not 0");
/// Bytes of a name as text: 253 (RFC 1035, 3.1), four times if all are escaped.
const MAX_NAME: usize = 1012;

/// Names by address.
pub struct Names(LruCache<IpAddr, Arc<str>>);

/// What an answer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The name that was asked for, without a last dot, escaped.
    pub name: String,
    /// `A`, `AAAA`, …
    pub question: String,
    /// `NOERROR`, `NXDOMAIN`, …
    pub code: &'static str,
    /// What the name stands for.
    pub addresses: Vec<IpAddr>,
}

impl Default for Names {
    fn default() -> Self {
        Self(LruCache::new(MAX_NAMES))
    }
}

impl Names {
    /// Notes the addresses of an answer.
    pub fn learn(&mut self, answer: &Answer) {
        let mut name: Option<Arc<str>> = None;
        for address in &answer.addresses {
            let name = name.get_or_insert_with(|| answer.name.as_str().into());
            if self.0.peek(address).is_none_or(|known| known != name) {
                self.0.put(*address, Arc::clone(name));
            }
        }
    }

    /// The name under which an address was last asked for.
    pub fn of(&mut self, address: IpAddr) -> Option<&Arc<str>> {
        if self.0.is_empty() { None } else { self.0.get(&address) }
    }
}

/// Reads an answer; `None` if the bytes are none, or not to one question.
#[must_use]
pub fn parse(message: &[u8]) -> Option<Answer> {
    let packet = Packet::parse(message).ok()?;
    if !packet.has_flags(PacketFlag::RESPONSE) || packet.opcode() != OPCODE::StandardQuery {
        return None;
    }
    let [question] = packet.questions.as_slice() else {
        return None;
    };
    let mut name = String::new();
    for label in question.qname.as_bytes() {
        if !name.is_empty() {
            name.push('.');
        }
        escape(label, &mut name);
    }
    if name.len() > MAX_NAME {
        return None;
    }
    let addresses = packet.answers.iter().filter_map(|record| match &record.rdata {
        RData::A(a) => Some(IpAddr::V4(Ipv4Addr::from(a.address))),
        RData::AAAA(aaaa) => Some(IpAddr::V6(Ipv6Addr::from(aaaa.address)).to_canonical()),
        _ => None,
    });
    Some(Answer {
        addresses: addresses.collect(),
        question: match question.qtype {
            QTYPE::TYPE(kind) => format!("{kind:?}"),
            other => format!("{other:?}"),
        },
        code: code_name(packet.rcode()),
        name,
    })
}

/// As in a zone file (RFC 1035, 5.1): `\.` and `\ddd`.
fn escape(label: &[u8], out: &mut String) {
    for &byte in label {
        match byte {
            b'.' | b'\\' => out.extend(['\\', char::from(byte)]),
            b'!'..=b'~' => out.push(char::from(byte)),
            _ => {
                let _ = write!(out, "\\{byte:03}");
            }
        }
    }
}

/// Names of the registry (RFC 6895).
fn code_name(code: RCODE) -> &'static str {
    match code {
        RCODE::NoError => "NOERROR",
        RCODE::FormatError => "FORMERR",
        RCODE::ServerFailure => "SERVFAIL",
        RCODE::NameError => "NXDOMAIN",
        RCODE::NotImplemented => "NOTIMP",
        RCODE::Refused => "REFUSED",
        _ => "OTHER",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::{Duration, Instant};

    /// The answer of a real server (dnsmasq 2.90) to `A web.example.test`.
    const ANSWER: &[u8] = b"\x12\x34\x85\x80\x00\x01\x00\x01\x00\x00\x00\x00\
        \x03web\x07example\x04test\x00\x00\x01\x00\x01\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x00\x00\x04\x0a\x00\x00\x07";

    #[test]
    fn an_answer_names_its_addresses() {
        let answer = parse(ANSWER).expect("an answer");
        let expected = Answer {
            name: "web.example.test".into(),
            question: "A".into(),
            code: "NOERROR",
            addresses: vec![IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7))],
        };
        assert_eq!(answer, expected);
        let mut names = Names::default();
        names.learn(&answer);
        assert_eq!(names.of(answer.addresses[0]).map(|name| &**name), Some("web.example.test"));
        assert_eq!(names.of(IpAddr::V4(Ipv4Addr::LOCALHOST)), None);
    }

    #[test]
    fn a_question_is_no_answer() {
        let mut question = ANSWER[..34].to_vec();
        (question[2], question[7]) = (1, 0);
        assert_eq!(parse(&question), None);
    }

    #[test]
    fn bytes_that_are_no_letters_are_escaped() {
        let mut odd = ANSWER.to_vec();
        odd[13..16].copy_from_slice(b"\x1b.\\");
        assert_eq!(parse(&odd).expect("an answer").name, "\\027\\.\\\\.example.test");
    }

    #[test]
    fn a_name_that_points_at_itself_ends() {
        let mut loops = ANSWER[..12].to_vec();
        loops.extend(b"\xc0\x0c\x00\x01\x00\x01");
        let begin = Instant::now();
        assert_eq!(parse(&loops), None);
        assert!(begin.elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn an_answer_that_is_cut_off_is_none() {
        for len in 0..ANSWER.len() {
            assert_eq!(parse(&ANSWER[..len]), None, "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_or_none(bytes in prop::collection::vec(any::<u8>(), 0..1400)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn an_answer_with_changed_bytes_has_a_name_of_printable_ascii(
            changes in prop::collection::vec((2usize..ANSWER.len(), any::<u8>()), 1..4),
        ) {
            let mut bytes = ANSWER.to_vec();
            changes.into_iter().for_each(|(at, byte)| bytes[at] = byte);
            if let Some(answer) = parse(&bytes) {
                prop_assert!(answer.name.bytes().all(|byte| byte.is_ascii_graphic()) && answer.name.len() <= MAX_NAME);
            }
        }
    }
}
