//! Which addresses a name may have.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use rustix::io::Errno;

/// Networks (address, prefix length) that are not hosts of the internet: this machine, its networks, cloud metadata,
/// translations of IPv4 into other forms, tests, groups.
const SPECIAL_V4: [([u8; 4], u32); 16] = [
    ([0, 0, 0, 0], 8),
    ([10, 0, 0, 0], 8),
    ([100, 64, 0, 0], 10),
    ([127, 0, 0, 0], 8),
    ([169, 254, 0, 0], 16),
    ([172, 16, 0, 0], 12),
    ([192, 0, 0, 0], 24),
    ([192, 0, 2, 0], 24),
    ([192, 31, 196, 0], 24),
    ([192, 52, 193, 0], 24),
    ([192, 88, 99, 0], 24),
    ([192, 168, 0, 0], 16),
    ([198, 18, 0, 0], 15),
    ([198, 51, 100, 0], 24),
    ([203, 0, 113, 0], 24),
    // Multicast, reserved, broadcast.
    ([224, 0, 0, 0], 3),
];

/// The same within the global networks (2000::/3); everything outside of them is special: mapped and translated IPv4
/// (`::ffff:0:0/96`, `64:ff9b::/96`), unique local, link-local, multicast.
const SPECIAL_V6: [([u16; 3], u32); 5] = [
    // Protocol assignments, with Teredo.
    ([0x2001, 0, 0], 23),
    ([0x2001, 0xdb8, 0], 32),
    // 6to4: holds an IPv4 address.
    ([0x2002, 0, 0], 16),
    ([0x2620, 0x4f, 0x8000], 48),
    ([0x3fff, 0, 0], 20),
];

/// Whether this is an address of a host on the internet.
pub(super) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            !SPECIAL_V4.iter().any(|(network, prefix)| shares(address, Ipv4Addr::from(*network), *prefix))
        }
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            let is_global = bits >> 125 == 0b001;
            let is_special = |(network, prefix): &([u16; 3], u32)| {
                let [a, b, c] = *network;
                let network = Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0).to_bits();
                (bits ^ network) >> (128 - prefix) == 0
            };
            is_global && !SPECIAL_V6.iter().any(is_special)
        }
    }
}

/// Whether this machine has the address, at this moment: the kernel binds to no other. What cannot be tried counts as own,
/// and so does everything where the kernel binds to any address (`ip_nonlocal_bind`).
pub(super) fn is_own(address: IpAddr) -> bool {
    match UdpSocket::bind((address, 0)) {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::AddrNotAvailable => false,
        // Without IPv6 there is no such address either.
        Err(error) => Errno::from_io_error(&error) != Some(Errno::AFNOSUPPORT),
    }
}

fn shares(address: Ipv4Addr, network: Ipv4Addr, prefix: u32) -> bool {
    (address.to_bits() ^ network.to_bits()) >> (32 - prefix) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_addresses_are_not_public() {
        for special in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.170",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "64:ff9b::7f00:1",
            "64:ff9b::808:808",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:1::1",
            "2001:db8::1",
            "2002:7f00:1::1",
            "2002:808:808::1",
            "3fff::1",
            "fc00::1",
            "fd00::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "4000::1",
        ] {
            assert!(!is_public(special.parse().unwrap()), "{special}");
        }
    }

    #[test]
    fn own_addresses_are_known() {
        for own in ["127.0.0.1", "127.0.0.2"] {
            assert!(is_own(own.parse().unwrap()), "{own}");
        }
        for other in ["1.1.1.1", "192.0.2.1", "2606:4700::1111"] {
            assert!(!is_own(other.parse().unwrap()), "{other}");
        }
    }

    #[test]
    fn addresses_of_the_internet_are_public() {
        for public in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "128.0.0.1",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.1",
            "192.167.255.255",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2606:4700::1111",
            "2a00:1450::1",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }
}
