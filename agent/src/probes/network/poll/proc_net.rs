//! The sockets by /proc/net/tcp and tcp6, where sock_diag is refused: no
//! cookie and no counts.

use super::socket::{Holder, Socket};
use agent_common::network::state;
use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

/// All TCP sockets of this network namespace.
///
/// # Errors
/// If /proc does not have the table.
pub fn read(proc: &Path) -> io::Result<Vec<Socket>> {
    let four = fs::read_to_string(proc.join("net/tcp"))?;
    // Not there without IPv6.
    let six = fs::read_to_string(proc.join("net/tcp6")).unwrap_or_default();
    Ok(parse(&four).chain(parse(&six)).collect())
}

/// Each line but the heading; what is no socket is passed over.
fn parse(text: &str) -> impl Iterator<Item = Socket> {
    text.lines().filter_map(line)
}

/// Format: net/ipv4/tcp_ipv4.c, `get_tcp4_sock`; net/ipv6/tcp_ipv6.c, `get_tcp6_sock`.
fn line(line: &str) -> Option<Socket> {
    let mut fields = line.split_ascii_whitespace();
    let (local, remote) = (end(fields.nth(1)?)?, end(fields.next()?)?);
    let number = u8::from_str_radix(fields.next()?, 16).ok()?;
    let uid = fields.nth(3)?.parse().ok()?;
    let inode = fields.nth(1)?.parse().ok()?;
    Some(Socket {
        cookie: 0,
        inode,
        uid,
        state: over(number, inode == 0),
        local,
        remote,
        cgroup_id: 0,
        info: None,
        holder: Holder::NotSought,
    })
}

/// A socket that nobody holds and that waits for the peer's FIN is kept as one
/// that waits for old packets, with its old state (`tcp_time_wait`).
pub fn over(number: u8, dropped: bool) -> u8 {
    if number == state::FIN_WAIT2 && dropped { state::TIME_WAIT } else { number }
}

/// `0100007F:1F90`: the address as words of the machine's byte order, the port as a number.
fn end(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = [0; 16];
    for (at, word) in bytes.chunks_exact_mut(4).enumerate().take(address.len() / 8) {
        let word: &mut [u8] = word;
        let text = address.get(at * 8..at * 8 + 8)?;
        word.copy_from_slice(&u32::from_str_radix(text, 16).ok()?.to_ne_bytes());
    }
    let [a, b, c, d, ..] = bytes;
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        32 => IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As a little-endian machine shows them.
    const FOUR: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0000000000000000 100 0 0 10 0
   1: 0100007F:9C40 070200C0:0050 01 00000000:00000000 00:00000000 00000000  1000        0 4712 1 0000000000000000 20 4 30 10 -1
   2: 0100007F:9C41 0100007F:1F90 06 00000000:00000000 03:00000F2A 00000000     0        0 0 3 0000000000000000
   3: 0100007F:9C42 0100007F:1F90 05 00000000:00000000 03:00000F2A 00000000     0        0 0 3 0000000000000000
";
    const SIX: &str = "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: B80D0120000000000000000001000000:0016 B80D0120000000000000000002000000:C350 08 00000000:00000000 00:00000000 00000000  1001        0 99 1 0000000000000000 20 4 30 10 -1
   1: 0000000000000000FFFF00000100007F:0016 0000000000000000FFFF000002000A0A:C351 01 00000000:00000000 00:00000000 00000000  1001        0 98 1 0000000000000000 20 4 30 10 -1
";

    #[test]
    #[cfg(target_endian = "little")]
    fn a_line_is_a_socket_with_its_addresses_in_network_order() {
        let four: Vec<Socket> = parse(FOUR).collect();
        assert_eq!(four.len(), 4);
        assert_eq!((four[0].state, four[0].local.to_string()), (state::LISTEN, "127.0.0.1:8080".to_owned()));
        let open = four[1];
        assert_eq!((open.state, open.uid, open.inode), (state::ESTABLISHED, 1000, 4712));
        assert_eq!(
            (open.local.to_string(), open.remote.to_string()),
            ("127.0.0.1:40000".into(), "192.0.2.7:80".into())
        );
        assert_eq!((four[2].state, four[3].state), (state::TIME_WAIT, state::TIME_WAIT));
        let six: Vec<Socket> = parse(SIX).collect();
        assert_eq!((six[0].state, six[0].uid, six[0].inode), (state::CLOSE_WAIT, 1001, 99));
        assert_eq!(six[0].local.to_string(), "[2001:db8::1]:22");
        assert_eq!(six[0].remote.to_string(), "[2001:db8::2]:50000");
        assert_eq!(six[1].remote.to_string(), "10.10.0.2:50001");
    }

    #[test]
    fn what_the_kernel_shows_has_the_port_that_listens_here() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let sockets = read(Path::new("/proc")).expect("/proc/net/tcp");
        assert!(sockets.iter().any(|socket| socket.state == state::LISTEN && socket.local == address));
    }

    proptest! {
        #[test]
        fn any_text_is_sockets_or_nothing(text: String, at in 0..FOUR.len(), with in "[0-9A-F: é\n]{0,40}") {
            let _ = parse(&text).count();
            let _ = parse(&format!("{}{with}{}", &FOUR[..at], &FOUR[at..])).count();
            let _ = parse(&format!("{}{with}{}", &SIX[..at.min(SIX.len())], &SIX[at.min(SIX.len())..])).count();
        }
    }
}
