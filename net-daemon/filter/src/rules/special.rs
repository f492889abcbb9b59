//! Ranges that are refused unless a rule names them: hosts of the operator's own networks, and addresses
//! that mean something else than a host on the internet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::prefix::Prefix;

/// A range that a broader rule does not reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Its addresses.
    pub prefix: Prefix,
    /// What it is for.
    pub what: &'static str,
}

const PRIVATE: &str = "private";
const LINK_LOCAL: &str = "link-local";
const LOOPBACK: &str = "loopback";
const MULTICAST: &str = "multicast";
const METADATA: &str = "metadata service";
const PROTOCOLS: &str = "IETF protocols";
const BENCHMARKS: &str = "benchmarks";
const TRANSLATED: &str = "IPv4 by NAT64";

/// The ranges. Ranges for documentation are not among them: examples and tests use them like others.
pub const SPECIAL: &[Range] = &[
    v4([0, 0, 0, 0], 8, "this network"),
    v4([10, 0, 0, 0], 8, PRIVATE),
    v4([100, 64, 0, 0], 10, "shared, carrier-grade NAT"),
    v4([100, 100, 100, 200], 32, METADATA),
    v4([127, 0, 0, 0], 8, LOOPBACK),
    v4([168, 63, 129, 16], 32, METADATA),
    v4([169, 254, 0, 0], 16, LINK_LOCAL),
    v4([169, 254, 0, 23], 32, METADATA),
    v4([169, 254, 42, 42], 32, METADATA),
    v4([169, 254, 169, 254], 32, METADATA),
    v4([169, 254, 170, 2], 32, METADATA),
    v4([169, 254, 170, 23], 32, METADATA),
    v4([172, 16, 0, 0], 12, PRIVATE),
    v4([192, 0, 0, 0], 24, PROTOCOLS),
    v4([192, 0, 0, 192], 32, METADATA),
    v4([192, 88, 99, 0], 24, "6to4 relays"),
    v4([192, 168, 0, 0], 16, PRIVATE),
    v4([198, 18, 0, 0], 15, BENCHMARKS),
    v4([224, 0, 0, 0], 4, MULTICAST),
    v4([240, 0, 0, 0], 4, "reserved"),
    v4([255, 255, 255, 255], 32, "broadcast"),
    v6([0; 8], 96, "IPv4-compatible"),
    v6([0; 8], 128, "unspecified"),
    v6([0, 0, 0, 0, 0, 0, 0, 1], 128, LOOPBACK),
    v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96, "IPv4-mapped"),
    v6([0, 0, 0, 0, 0xffff, 0, 0, 0], 96, "IPv4-translated"),
    v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96, TRANSLATED),
    v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48, TRANSLATED),
    v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64, "discard"),
    v6([0x100, 0, 0, 1, 0, 0, 0, 0], 64, "dummy"),
    v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23, PROTOCOLS),
    v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32, "Teredo"),
    v6([0x2001, 2, 0, 0, 0, 0, 0, 0], 48, BENCHMARKS),
    v6([0x2001, 0x10, 0, 0, 0, 0, 0, 0], 28, "ORCHID"),
    v6([0x2001, 0x20, 0, 0, 0, 0, 0, 0], 28, "ORCHID"),
    v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16, "6to4"),
    v6([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16, "segment routing"),
    v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7, "unique-local"),
    v6([0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42], 128, METADATA),
    v6([0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe], 128, METADATA),
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23], 128, METADATA),
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128, METADATA),
    v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128, METADATA),
    v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, LINK_LOCAL),
    v6([0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe], 128, METADATA),
    v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10, "site-local"),
    v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, MULTICAST),
];

/// IPv6 ranges whose addresses contain IPv4 addresses, which a translator or relay may reach.
pub(super) const EMBEDDING: &[&str] =
    &["IPv4-compatible", "IPv4-mapped", "IPv4-translated", TRANSLATED, "Teredo", "6to4"];

const fn v4(octets: [u8; 4], len: u8, what: &'static str) -> Range {
    let [a, b, c, d] = octets;
    range(IpAddr::V4(Ipv4Addr::new(a, b, c, d)), len, what)
}

const fn v6(segments: [u16; 8], len: u8, what: &'static str) -> Range {
    let [a, b, c, d, e, f, g, h] = segments;
    range(IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h)), len, what)
}

/// Evaluated at compile time only: a wrong length is an error of the compiler.
const fn range(address: IpAddr, len: u8, what: &'static str) -> Range {
    match Prefix::new(address, len) {
        Some(prefix) => Range { prefix, what },
        None => panic!("more bits than the family has"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Two columns of the page's table, as a set.
    fn documented() -> BTreeSet<(Prefix, String)> {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/policy.md");
        let page = fs::read_to_string(page).expect("the page");
        let table = page.split("| range | what |\n").nth(1).expect("the table of ranges");
        let rows = table.lines().skip(1).take_while(|line| line.starts_with('|'));
        let row = |line: &str| {
            let cells: Vec<_> = line.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
            (cells[1].parse().expect("a prefix"), cells[2].to_owned())
        };
        rows.map(row).collect()
    }

    #[test]
    fn the_page_lists_these_ranges() {
        let here = SPECIAL.iter().map(|range| (range.prefix, range.what.to_owned()));
        assert_eq!(documented(), here.collect());
    }

    #[test]
    fn ranges_are_listed_once_and_embedding_ones_exist() {
        let unique: BTreeSet<_> = SPECIAL.iter().map(|range| range.prefix).collect();
        assert_eq!(unique.len(), SPECIAL.len());
        for what in EMBEDDING {
            assert!(SPECIAL.iter().any(|range| range.what == *what), "{what}");
        }
    }
}
