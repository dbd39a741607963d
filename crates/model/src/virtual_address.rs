//! An address that goes with the primary: `10.0.0.100/24`, and what may be one.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// The longest name of an interface.
pub const INTERFACE_BYTES_MAX: usize = 15;

/// An address with the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VirtualAddress {
    /// The address.
    pub address: Ipv4Addr,
    /// How many bits of it name the network.
    pub prefix: u8,
}

impl VirtualAddress {
    /// Is this address of the same network?
    #[must_use]
    pub fn is_beside(&self, other: Ipv4Addr) -> bool {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
        (self.address.to_bits() ^ other.to_bits()) & mask == 0
    }

    /// Where everybody of that network is reached.
    #[must_use]
    pub fn broadcast(&self) -> Ipv4Addr {
        let hosts = u32::MAX.checked_shr(u32::from(self.prefix)).unwrap_or(0);
        Ipv4Addr::from_bits(self.address.to_bits() | hosts)
    }
}

impl fmt::Display for VirtualAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.address, self.prefix))
    }
}

impl FromStr for VirtualAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || {
            format!(
                "address = {text:?} is not of the form \"10.0.0.100/24\": an IPv4 address with its network's prefix"
            )
        };
        let (address, prefix) = text.split_once('/').ok_or_else(form)?;
        let address: Ipv4Addr = address.parse().map_err(|_| form())?;
        let prefix: u8 = prefix.parse().ok().filter(|prefix| (1..=32).contains(prefix)).ok_or_else(form)?;
        let virtual_address = Self { address, prefix };
        let unusable = address.is_unspecified() || address.is_multicast() || address.is_loopback();
        if unusable || address == Ipv4Addr::BROADCAST {
            return Err(format!("address = {text:?} is no address that others can reach"));
        }
        let host = address.to_bits() & u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
        if prefix < 31 && (host == 0 || address == virtual_address.broadcast()) {
            return Err(format!("address = {text:?} is the address of the network itself, or of all its hosts"));
        }
        Ok(virtual_address)
    }
}

impl Serialize for VirtualAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for VirtualAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// May an interface be called so?
#[must_use]
pub fn is_interface(name: &str) -> bool {
    let letters = name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':');
    !name.is_empty() && name.len() <= INTERFACE_BYTES_MAX && letters && name != "." && name != ".."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_an_address_and_what_is_not() {
        let address: VirtualAddress = "10.0.0.100/24".parse().unwrap();
        assert_eq!(address.to_string(), "10.0.0.100/24");
        assert_eq!(address.broadcast(), Ipv4Addr::new(10, 0, 0, 255));
        assert!(address.is_beside(Ipv4Addr::new(10, 0, 0, 7)) && !address.is_beside(Ipv4Addr::new(10, 0, 1, 7)));
        assert!("10.0.0.100/32".parse::<VirtualAddress>().unwrap().is_beside(Ipv4Addr::new(10, 0, 0, 100)));
        for wrong in [
            "",
            "10.0.0.100",
            "10.0.0.100/",
            "10.0.0.100/0",
            "10.0.0.100/33",
            "fe80::1/64",
            "10.0.0.0/24",
            "10.0.0.255/24",
            "0.0.0.0/24",
            "127.0.0.1/8",
            "224.0.0.1/4",
            "255.255.255.255/32",
            "db1/24",
        ] {
            assert!(wrong.parse::<VirtualAddress>().is_err(), "{wrong}");
        }
        assert!(is_interface("eth0") && is_interface("enp0s31f6.100"));
        for wrong in ["", "eth0/1", "a b", "..", "an-interface-too-long", "eth0:1"] {
            assert!(!is_interface(wrong), "{wrong}");
        }
    }
}
