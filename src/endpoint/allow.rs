//! Where the upstream of an endpoint made at run time may be.
//!
//! Whoever may make endpoints could otherwise have this process post to what only it can reach: the
//! networks behind it, and above all the metadata service of a cloud machine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Hosts and networks that may be upstreams; some addresses never are, whatever is allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allow {
    networks: Vec<IpNet>,
    /// In lower case.
    hosts: Vec<String>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// Whatever addresses this name leads to.
    Host(String),
    /// Every address in this network.
    Network(IpNet),
}

impl Allowed {
    /// Reads `10.0.0.0/8`, `::1` or `app.internal`; `None` when it is none of these.
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(network) = text.parse() {
            return Some(Self::Network(network));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Some(Self::Network(address.into()));
        }
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        let is_name = text.len() <= 253 && text.split('.').all(is_label);
        // What ends in a number is an address to everybody who resolves it, and here a broken one.
        let is_number = text
            .rsplit('.')
            .next()
            .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
        (is_name && !is_number).then(|| Self::Host(text.to_ascii_lowercase()))
    }
}

impl Allow {
    /// All of these together.
    pub fn new(all: Vec<Allowed>) -> Self {
        let mut allow = Self::default();
        for one in all {
            match one {
                Allowed::Host(host) => allow.hosts.push(host),
                Allowed::Network(network) => allow.networks.push(network),
            }
        }
        allow
    }

    /// Whether an upstream at this host can be allowed at all, as far as its name tells.
    pub fn may_be(&self, host: &str) -> bool {
        match host.parse() {
            Ok(address) => self.permits(host, address),
            Err(_) => self.knows(host) || !self.networks.is_empty(),
        }
    }

    /// Whether a connection to this address, found for this host, is allowed.
    pub fn permits(&self, host: &str, address: IpAddr) -> bool {
        if is_forbidden(address) {
            return false;
        }
        let plain = address.to_canonical();
        self.knows(host) || self.networks.iter().any(|network| network.contains(&plain))
    }

    fn knows(&self, host: &str) -> bool {
        self.hosts
            .iter()
            .any(|known| host.eq_ignore_ascii_case(known))
    }
}

/// Whether nobody's upstream is here: link-local and unspecified addresses, groups, and the
/// metadata services of clouds, however they are written as IPv6.
fn is_forbidden(address: IpAddr) -> bool {
    /// Beyond 169.254.169.254, which is link-local: Alibaba, Oracle, and Azure's host.
    const METADATA: [Ipv4Addr; 3] = [
        Ipv4Addr::new(100, 100, 100, 200),
        Ipv4Addr::new(192, 0, 0, 192),
        Ipv4Addr::new(168, 63, 129, 16),
    ];
    /// Google and Scaleway.
    const METADATA_6: [Ipv6Addr; 2] = [
        Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
        Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42),
    ];
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            // 0.0.0.0/8 leads to this machine.
            let is_this = v4.octets().starts_with(&[0]);
            is_this
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || METADATA.contains(&v4)
        }
        IpAddr::V6(v6) => {
            // AWS keeps this network for services of the machine: metadata, credentials of pods.
            let is_aws = v6.segments().starts_with(&[0xfd00, 0xec2]);
            let is_bad = v6.is_unspecified()
                || is_aws
                || v6.is_multicast()
                || v6.is_unicast_link_local()
                || METADATA_6.contains(&v6);
            is_bad || embedded(v6).any(|v4| is_forbidden(v4.into()))
        }
    }
}

/// The IPv4 addresses that an IPv6 address may stand for on its way: NAT64 under its well-known
/// prefix (RFC 6052) or one of a network's own (RFC 8215), whose length only that network knows;
/// 6to4 (RFC 3056), ISATAP (RFC 5214), SIIT (RFC 2765), or the deprecated form with it at the end.
fn embedded(v6: Ipv6Addr) -> impl Iterator<Item = Ipv4Addr> {
    let [
        _,
        _,
        b2,
        b3,
        b4,
        b5,
        b6,
        b7,
        _,
        b9,
        b10,
        b11,
        b12,
        b13,
        b14,
        b15,
    ] = v6.octets();
    let last = [b12, b13, b14, b15];
    let found = match v6.segments() {
        // The ninth octet is none of the address's (RFC 6052 §2.2).
        [0x64, 0xff9b, 1, ..] => {
            let by_48 = [b6, b7, b9, b10];
            let by_56 = [b7, b9, b10, b11];
            let by_64 = [b9, b10, b11, b12];
            vec![last, by_48, by_56, by_64]
        }
        [0x64, 0xff9b, 0, 0, 0, 0, ..] | [0, 0, 0, 0, 0xffff, 0, ..] => vec![last],
        [_, _, _, _, _, 0x5efe, ..] => vec![last],
        [0, 0, 0, 0, 0, 0, ..] if !v6.is_loopback() => vec![last],
        [0x2002, ..] => vec![[b2, b3, b4, b5]],
        _ => Vec::new(),
    };
    found.into_iter().map(Ipv4Addr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allow(texts: &[&str]) -> Allow {
        Allow::new(texts.iter().map(|t| Allowed::parse(t).unwrap()).collect())
    }

    #[test]
    fn what_is_no_host_and_no_network_is_refused() {
        for text in [
            "",
            "a b",
            "http://x",
            "x:80",
            "10.0.0.0/33",
            "1.2.3",
            "-/8",
            "a..b",
        ] {
            assert_eq!(Allowed::parse(text), None, "{text}");
        }
    }

    #[test]
    fn networks_and_names_are_allowed_and_nothing_else_is() {
        let some = allow(&["10.0.0.0/8", "App.Internal", "::1"]);
        let ip = |text: &str| text.parse().unwrap();
        assert!(some.permits("x", ip("10.1.2.3")));
        assert!(some.permits("x", ip("::ffff:10.1.2.3")));
        assert!(some.permits("app.internal", ip("203.0.113.9")));
        assert!(some.permits("localhost", ip("::1")));
        assert!(!some.permits("x", ip("127.0.0.1")));
        assert!(!some.permits("x.app.internal", ip("203.0.113.9")));
        assert!(!Allow::default().may_be("localhost"));
        assert!(some.may_be("anything") && !some.may_be("192.0.2.1"));
    }

    #[test]
    fn link_local_and_metadata_addresses_are_never_allowed() {
        let all = allow(&["0.0.0.0/0", "::/0", "metadata.google.internal"]);
        for text in [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "::a9fe:a9fe",
            "fe80::1",
            "64:ff9b:1::a9fe:a9fe",
            "64:ff9b:1:a9fe:a9:fe00::",
            "64:ff9b:1:ffa9:fe:a9fe::",
            "64:ff9b:1:ffff:a9:fea9:fe00:0",
            "::ffff:0:169.254.169.254",
            "2001:db8::5efe:169.254.169.254",
            "fd00:ec2::254",
            "fd00:ec2::23",
            "fd00:42::42",
            "fd20:ce::254",
            "100.100.100.200",
            "0.0.0.0",
            "::",
            "255.255.255.255",
            "224.0.0.1",
        ] {
            let address = text.parse().unwrap();
            assert!(!all.permits("metadata.google.internal", address), "{text}");
        }
        assert!(all.permits("x", "127.0.0.1".parse().unwrap()));
        assert!(all.permits("x", "::1".parse().unwrap()));
    }
}
