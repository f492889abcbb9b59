//! Frames in which the fuzz target `filter` differed from its model.

use super::*;
use crate::header;

/// The announcement after a migration is a short frame: behind the judged bytes, it could say anything.
#[test]
fn an_announcement_is_short() {
    let filter = with_policy();
    let announcement = with(arp(([0xff; 6], GUEST), 3, "0.0.0.0", "0.0.0.0"), 12, &[0x80, 0x35]);
    let mut announcement = with(announcement, 32, &GUEST);
    assert_eq!(judged(&filter, Way::Out, &announcement), Ok(()));
    announcement.resize(header::LEN + 60, 0);
    assert_eq!(judged(&filter, Way::Out, &announcement), Ok(()));
    announcement.resize(JUDGED, 0);
    let verdict = filter.judge(Way::Out, &mut announcement, JUDGED + 1000, 0);
    assert_eq!(verdict, Verdict::Refuse(Reason::EtherType));
}

/// In log mode, frames that the policy would refuse have their padding cleared and bounded like others.
#[test]
fn log_mode_clears_padding() {
    let filter = filter(setup(Some(&POLICY_TEXT.replace("enforce", "log"))));
    show(&filter);
    let refused = out(("192.0.2.10", "203.0.113.7"), 17, &udp((5, 53), b"?"));
    let asks = arp((GATEWAY, GUEST), 1, "192.0.2.10", "192.0.2.99");
    for (frame, reason, end) in [(refused, Reason::NotAllowed, 55), (asks, Reason::NotNamed, 54)] {
        let mut padded = frame;
        padded.resize(header::LEN + 60, 9);
        let len = padded.len();
        assert_eq!(filter.judge(Way::Out, &mut padded, len, 0), Verdict::Note(reason));
        assert!(padded[end..].iter().all(|byte| *byte == 0), "{padded:?}");
        padded.push(9);
        assert!(matches!(filter.judge(Way::Out, &mut padded, len + 1, 0), Verdict::Refuse(_)));
    }
}

/// Fragments of an answer that a rule for the guest allows also pass if they have options, and if the policy
/// has changed since.
#[test]
fn answers_in_fragments_go_on() {
    let rule = "[[allow]]\nto = \"198.51.100.0/24\"\nfragments = true\noptions = true\n";
    let one = filter(setup(Some(&format!("{POLICY_TEXT}{rule}"))));
    show(&one);
    let fragment = with(into(("198.51.100.7", "192.0.2.10"), 17, &[0; 16]), 20, &[0, 100]);
    let no_options = [&[1, 1, 1, 1][..], &[0; 12]].concat();
    let options = with(into(("198.51.100.7", "192.0.2.10"), 17, &no_options), 20, &[0, 100]);
    let options = with(options, 14, &[0x46]);
    for frame in [&fragment, &options, &options, &fragment] {
        assert_eq!(judged(&one, Way::In, frame), Ok(()));
    }
    let other = one.with_policy(Some(format!("# Changed.\n{POLICY_TEXT}{rule}"))).unwrap();
    assert_eq!(judged(&other, Way::In, &fragment), Ok(()));
}

/// A neighbour that a policy makes a gateway stays one: nobody takes its place when it was silent for long.
#[test]
fn a_neighbour_becomes_a_gateway() {
    let neighbour = with_policy();
    let text = POLICY_TEXT.replace("\"192.0.2.1\", \"fe80::fe\"", "\"192.0.2.7\"");
    let gateway = neighbour.with_policy(Some(text)).unwrap();
    let shows = |mac, now| {
        let mut frame = arp((GUEST, mac), 2, "192.0.2.7", "192.0.2.10");
        let len = frame.len();
        assert_eq!(gateway.judge(Way::In, &mut frame, len, now), Verdict::Pass);
    };
    shows(OTHER, 1000);
    shows(GATEWAY, 9000);
    for (mac, expected) in [(OTHER, Verdict::Pass), (GATEWAY, Verdict::Refuse(Reason::FlowMac))] {
        let mut frame = packet((mac, GUEST), ("192.0.2.10", "198.51.100.7"), 17, &udp((5, 53), b"?"));
        let len = frame.len();
        assert_eq!(gateway.judge(Way::Out, &mut frame, len, 9000), expected);
    }
}

/// Messages of multicast listeners are whole, and a packet has at most five extension headers.
#[test]
fn listeners_do_not_fragment() {
    let filter = with_policy();
    let group = "ff02::16";
    let to = group_mac(group.parse().unwrap());
    let report = [143, 0, 0, 0, 0, 0, 0, 0];
    let whole = packet((to, GUEST), ("2001:db8:1::10", group), 58, &report);
    assert_eq!(judged(&filter, Way::Out, &whole), Ok(()));
    let fragment = [&[58, 0, 0, 1, 0, 0, 0, 9][..], &report].concat();
    let part = packet((to, GUEST), ("2001:db8:1::10", group), 44, &fragment);
    assert_eq!(judged(&filter, Way::Out, &part), Err(Reason::Neighbour));
    let six =
        [&[60, 0, 1, 4, 0, 0, 0, 0].repeat(4)[..], &[44, 0, 1, 4, 0, 0, 0, 0], &[17, 0, 1, 0, 0, 0, 0, 9]];
    let frame = out(("2001:db8:1::10", "2001:db8:5::7"), 60, &six.concat());
    assert_eq!(judged(&filter, Way::Out, &frame), Err(Reason::ExtensionHeader));
}
