//! Bytes from the ring, or from a look -> a checked event, borrowed from them.

use crate::probes::{Malformed, record};
use agent_common::network::{Dns, Ends, Tcp, family, kind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A record of the network room.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A handshake is done.
    Opened(&'a Tcp),
    /// A connection, or the attempt at one, is over.
    Closed(&'a Tcp),
    /// A look found a socket.
    Alive(&'a Tcp),
    /// A name server has answered.
    Dns(&'a Dns),
}

/// Reads one record.
///
/// # Errors
/// [`Malformed`] if the size or the kind is not that of a record, the address
/// family is neither IPv4 nor IPv6, or a length is longer than its field.
pub fn decode(bytes: &[u8]) -> Result<Event<'_>, Malformed> {
    match record::kind(bytes)? {
        kind::OPENED => Ok(Event::Opened(tcp(bytes)?)),
        kind::CLOSED => Ok(Event::Closed(tcp(bytes)?)),
        kind::ALIVE => Ok(Event::Alive(tcp(bytes)?)),
        kind::DNS => {
            let dns: &Dns = record::of(bytes)?;
            check_family(&dns.ends)?;
            record::check_len("payload", dns.len, dns.payload.len())?;
            Ok(Event::Dns(dns))
        }
        unknown => Err(Malformed::Kind(unknown)),
    }
}

fn tcp(bytes: &[u8]) -> Result<&Tcp, Malformed> {
    let tcp: &Tcp = record::of(bytes)?;
    check_family(&tcp.ends)?;
    Ok(tcp)
}

fn check_family(ends: &Ends) -> Result<(), Malformed> {
    match ends.family {
        family::INET | family::INET6 => Ok(()),
        other => Err(Malformed::Value("address family", other.into())),
    }
}

/// An address of a record; one that is IPv4 inside IPv6 is IPv4.
#[must_use]
pub fn address(address_family: u16, bytes: [u8; 16]) -> IpAddr {
    if address_family == family::INET {
        let [a, b, c, d, ..] = bytes;
        return IpAddr::V4(Ipv4Addr::new(a, b, c, d));
    }
    IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::{FromZeros as _, IntoBytes as _};

    fn tcp(kind: u32) -> Tcp {
        let mut tcp = Tcp::new_zeroed();
        (tcp.kind, tcp.ends.family) = (kind, family::INET);
        tcp
    }

    #[test]
    fn a_record_is_what_its_kind_says() {
        assert!(matches!(decode(tcp(kind::OPENED).as_bytes()), Ok(Event::Opened(_))));
        assert!(matches!(decode(tcp(kind::CLOSED).as_bytes()), Ok(Event::Closed(_))));
        assert!(matches!(decode(tcp(kind::ALIVE).as_bytes()), Ok(Event::Alive(_))));
        assert_eq!(decode(tcp(9).as_bytes()).err(), Some(Malformed::Kind(9)));
        assert_eq!(
            decode(&tcp(1).as_bytes()[..size_of::<Tcp>() - 8]).err(),
            Some(Malformed::Size(size_of::<Tcp>() - 8))
        );
    }

    #[test]
    fn an_unknown_address_family_is_malformed() {
        let mut record = tcp(kind::OPENED);
        record.ends.family = 16;
        assert_eq!(decode(record.as_bytes()).err(), Some(Malformed::Value("address family", 16)));
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_address_that_it_maps() {
        let mapped = "::ffff:192.0.2.7".parse::<Ipv6Addr>().expect("an address");
        assert_eq!(address(family::INET6, mapped.octets()).to_string(), "192.0.2.7");
        assert_eq!(address(family::INET6, Ipv6Addr::LOCALHOST.octets()).to_string(), "::1");
        let mut four = [0; 16];
        four[..4].copy_from_slice(&[192, 0, 2, 7]);
        assert_eq!(address(family::INET, four).to_string(), "192.0.2.7");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_record_or_an_error(words in prop::collection::vec(any::<u64>(), 0..64), cut in 0usize..8) {
            let bytes = words.as_bytes();
            let _ = decode(&bytes[..bytes.len().saturating_sub(cut)]);
        }
    }
}
