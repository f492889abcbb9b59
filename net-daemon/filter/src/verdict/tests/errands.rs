//! Frames of the guest's own affairs, and of its gateway's, that try to be something else.

use super::*;

/// Ends and MAC addresses of a router solicitation.
const ASKS: (&str, &str) = ("2001:db8:1::10", "ff02::2");

fn multicast(ends: (&str, &str), message: &[u8]) -> Vec<u8> {
    let IpAddr::V6(group) = ip(ends.1) else { panic!() };
    packet((group_mac(group), GUEST), ends, 58, message)
}

#[test]
fn discovery_is_no_errand() {
    let filter = with_policy();
    let solicitation = [133, 0, 0, 0, 0, 0, 0, 0];
    let with_option = |option: &[u8]| multicast(ASKS, &[&solicitation[..], option].concat());
    let nonce = |units: u8| [&[14, units][..], &vec![7; 8 * usize::from(units) - 2]].concat();
    for (option, expected) in [
        (vec![], Ok(())),
        (nonce(1), Ok(())),
        (nonce(2), Err(Reason::Neighbour)),
        (nonce(100), Err(Reason::Neighbour)),
        (vec![200, 1, 7, 7, 7, 7, 7, 7], Err(Reason::Neighbour)),
    ] {
        assert_eq!(judged(&filter, Way::Out, &with_option(&option)), expected, "{option:?}");
    }
    // Behind destination options.
    let hidden = [&[58, 0, 1, 4, 0, 0, 0, 0][..], &solicitation].concat();
    let hidden = with(multicast(ASKS, &hidden), 20, &[60]);
    assert_eq!(judged(&filter, Way::Out, &hidden), Err(Reason::ExtensionHeader));
}

#[test]
fn a_gateway_advertises_from_its_own_mac_address() {
    let advertisement = |mac| {
        let message = [&[134, 0, 0, 0, 64, 0, 7, 8][..], &[0; 8]].concat();
        packet(([0x33, 0x33, 0, 0, 0, 1], mac), ("fe80::fe", "ff02::1"), 58, &message)
    };
    let shown = with_policy();
    let given = POLICY_TEXT.replace("[network]", "[network]\ngateway-mac = \"02:00:00:00:00:fe\"");
    let given = filter(setup(Some(&given)));
    for filter in [shown, given] {
        assert_eq!(judged(&filter, Way::In, &advertisement(GATEWAY)), Ok(()));
        assert_eq!(judged(&filter, Way::In, &advertisement(OTHER)), Err(Reason::PeerMac));
    }
}

/// An error may have options if its flow may.
#[test]
fn errors_have_the_options_of_their_flow() {
    for (rule, expected) in [("", Err(Reason::IpOptions)), ("options = true\n", Ok(()))] {
        let text = POLICY_TEXT.replacen("[[allow]]\n", &format!("[[allow]]\n{rule}"), 1);
        let filter = filter(setup(Some(&text)));
        show(&filter);
        let asks = out(("192.0.2.10", "198.51.100.7"), 17, &udp((5, 53), b"?"));
        assert_eq!(judged(&filter, Way::Out, &asks), Ok(()));
        let ip_at = crate::header::LEN + 14;
        let error = icmp(3, 0, &asks[ip_at..]);
        let plain = into(("198.51.100.7", "192.0.2.10"), 1, &error);
        assert_eq!(judged(&filter, Way::In, &plain), Ok(()));
        let options = [&[148, 4, 0, 0][..], &error].concat();
        let options = with(into(("198.51.100.7", "192.0.2.10"), 1, &options), 14, &[0x46]);
        assert_eq!(judged(&filter, Way::In, &options), expected, "{rule}");
    }
}

#[test]
fn no_fragment_ends_beyond_every_packet() {
    let rule = "[[allow]]\nto = \"198.51.100.0/24\"\nfragments = true\n";
    let filter = filter(setup(Some(&format!("{POLICY_TEXT}{rule}"))));
    show(&filter);
    let last = |offset: u16, data: &[u8]| {
        let frame = out(("192.0.2.10", "198.51.100.7"), 17, data);
        with(frame, 20, &(offset / 8).to_be_bytes())
    };
    assert_eq!(judged(&filter, Way::Out, &last(65_496, &[7; 19])), Ok(()));
    assert_eq!(judged(&filter, Way::Out, &last(65_496, &[7; 20])), Err(Reason::Fragment));
    assert_eq!(judged(&filter, Way::Out, &last(65_528, &[7; 100])), Err(Reason::Fragment));
}
