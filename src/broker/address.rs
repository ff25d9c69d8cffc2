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

/// Addresses of documentation: no machine has them.
const OF_NOBODY: (IpAddr, IpAddr) =
    (IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)));

/// Whether this machine has the address, at this moment: the kernel binds to no other, unless it binds to any
/// (`ip_nonlocal_bind`). What cannot be tried counts as own.
pub(super) fn is_own(address: IpAddr) -> bool {
    let of_nobody = if address.is_ipv4() { OF_NOBODY.0 } else { OF_NOBODY.1 };
    can_bind(address) && (!can_bind(of_nobody) || is_local(address))
}

/// Whether the kernel takes packets to the address for its own, by its tables of routes. What cannot be read counts as own.
fn is_local(address: IpAddr) -> bool {
    let tables = match address {
        IpAddr::V4(_) => "/proc/self/net/fib_trie",
        IpAddr::V6(_) => "/proc/self/net/if_inet6",
    };
    std::fs::read_to_string(tables).map_or(true, |text| match address {
        IpAddr::V4(address) => is_local_v4(&text, address),
        IpAddr::V6(address) => is_local_v6(&text, address),
    })
}

/// Networks are lines `|-- ADDRESS`, each followed by lines `/PREFIX SCOPE TYPE`.
fn is_local_v4(text: &str, address: Ipv4Addr) -> bool {
    let mut network = None;
    text.lines().any(|line| {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        match words[..] {
            ["|--", found] => network = found.parse().ok(),
            [prefix, _, "LOCAL", ..] => {
                let prefix = prefix.strip_prefix('/').and_then(|it| it.parse().ok()).filter(|it| *it <= 32);
                return network.zip(prefix).is_some_and(|(network, prefix)| match prefix {
                    0 => true,
                    prefix => shares(address, network, prefix),
                });
            }
            _ => {}
        }
        false
    })
}

/// Each line begins with the digits of an address.
fn is_local_v6(text: &str, address: Ipv6Addr) -> bool {
    let digits = format!("{:032x}", address.to_bits());
    text.lines().any(|line| line.split_ascii_whitespace().next() == Some(&digits))
}

fn can_bind(address: IpAddr) -> bool {
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

    /// The test runs itself in a network of its own, where the kernel binds to any address.
    #[test]
    fn own_addresses_are_known_with_nonlocal_bind() {
        const INSIDE: &str = "PILOTLIGHT_TEST_NONLOCAL";
        if std::env::var_os(INSIDE).is_none() {
            let test = "broker::address::tests::own_addresses_are_known_with_nonlocal_bind";
            let script = "echo 1 >/proc/sys/net/ipv4/ip_nonlocal_bind && exec \"$@\"";
            let mut command = std::process::Command::new("unshare");
            command.args(["--map-root-user", "--net", "sh", "-c", script, "sh"]);
            command.arg(std::env::current_exe().unwrap()).args(["--exact", test]).env(INSIDE, "1");
            let output = command.output();
            let Some(output) = output.ok().filter(|it| !it.stderr.starts_with(b"unshare")) else {
                return pilotlight_test_support::installed::left_out(
                    "no network of its own for a test (unshare)",
                );
            };
            assert!(output.status.success(), "{output:?}");
            assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{output:?}");
            return;
        }
        assert!(can_bind(OF_NOBODY.0), "the network is another");
        for other in ["1.1.1.1", "9.9.9.9"] {
            let other = other.parse().unwrap();
            assert!(can_bind(other) && !is_own(other), "{other}");
        }
    }

    #[test]
    fn local_addresses_are_those_of_the_kernel() {
        assert!(is_local(Ipv4Addr::LOCALHOST.into()) && !is_local(OF_NOBODY.0) && !is_local(OF_NOBODY.1));
        let text = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     |-- 9.9.9.0\n        \
                    /24 link UNICAST\nLocal:\n     |-- 9.9.9.9\n        /32 host LOCAL\n     |-- 9.9.9.255\n        \
                    /32 link BROADCAST\n     |-- 8.8.0.0\n        /16 host LOCAL\n     |-- x\n        /33 host LOCAL\n";
        let of = |address: &str| is_local_v4(text, address.parse().unwrap());
        assert_eq!(["9.9.9.9", "8.8.4.4"].map(of), [true; 2]);
        assert_eq!(["9.9.9.8", "9.9.9.255", "8.9.0.1", "1.1.1.1"].map(of), [false; 4]);
        let text = "26064700000000000000000000001111 02 40 00 80 eth0\n\n";
        let of = |address: &str| is_local_v6(text, address.parse().unwrap());
        assert!(of("2606:4700::1111") && !of("2606:4700::1112"));
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
