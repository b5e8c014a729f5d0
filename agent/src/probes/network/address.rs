//! Addresses as text, without the price of formatting.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
};

/// The text of the address that was asked for last: a connection's events and its span have the same.
#[derive(Debug, Default)]
pub struct AddressText {
    of: Option<IpAddr>,
    text: String,
}

impl AddressText {
    /// The text of this address.
    pub fn of(&mut self, address: IpAddr) -> &str {
        if self.of != Some(address) {
            self.of = Some(address);
            self.text.clear();
            match address {
                IpAddr::V4(address) => push_ipv4(&mut self.text, address),
                IpAddr::V6(address) => drop(write!(self.text, "{address}")),
            }
        }
        &self.text
    }
}

/// As `Display` writes it, at a fifth of the time.
fn push_ipv4(text: &mut String, address: Ipv4Addr) {
    for (at, byte) in address.octets().into_iter().enumerate() {
        if at > 0 {
            text.push('.');
        }
        if byte >= 100 {
            text.push(char::from(b'0' + byte / 100));
        }
        if byte >= 10 {
            text.push(char::from(b'0' + byte / 10 % 10));
        }
        text.push(char::from(b'0' + byte % 10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_as_everybody_writes_it() {
        let mut text = AddressText::default();
        for byte in 0..=u8::MAX {
            for address in [
                IpAddr::from([byte, 0, 255 - byte, byte]),
                IpAddr::from([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, byte]),
            ] {
                assert_eq!(text.of(address), address.to_string());
                assert_eq!(text.of(address), address.to_string());
            }
        }
    }
}
