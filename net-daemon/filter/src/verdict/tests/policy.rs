//! Whom it may reach.

use super::*;

#[test]
fn rules_decide_on_new_flows() {
    let filter = with_policy();
    for [guest, allowed, denied, neighbour, client, gateway] in FAMILIES {
        for (peer, mac, port, expected) in [
            (allowed, GATEWAY, 443, Ok(())),
            (denied, GATEWAY, 443, Err(Reason::Denied)),
            (client, GATEWAY, 443, Err(Reason::NotAllowed)),
            (neighbour, OTHER, 5432, Ok(())),
            (neighbour, OTHER, 5433, Err(Reason::NotAllowed)),
            (gateway, GATEWAY, 443, Err(Reason::NotNamed)),
            (allowed, OTHER, 444, Err(Reason::PeerMac)),
            (neighbour, GATEWAY, 5432, Err(Reason::FlowMac)),
        ] {
            let frame = packet((mac, GUEST), (guest, peer), 6, &tcp((1000, port), SYN, (1, 0), 0));
            assert_eq!(judged(&filter, Way::Out, &frame), expected, "{peer} {port}");
        }
        for (port, expected) in [(22, Ok(())), (23, Err(Reason::NotAllowed))] {
            let frame = into((client, guest), 6, &tcp((1000, port), SYN, (1, 0), 0));
            assert_eq!(judged(&filter, Way::In, &frame), expected, "{client} {port}");
        }
        let unknown = packet((GUEST, OTHER), (client, guest), 6, &tcp((1001, 22), SYN, (1, 0), 0));
        assert_eq!(judged(&filter, Way::In, &unknown), Err(Reason::PeerMac));
    }
}

#[test]
fn answers_need_a_question() {
    let filter = with_policy();
    for [guest, allowed, ..] in FAMILIES {
        let question = out((guest, allowed), 17, &udp((5, 53), b"?"));
        let answer = into((allowed, guest), 17, &udp((53, 5), b"!"));
        assert_eq!(judged(&filter, Way::In, &answer), Err(Reason::NotAllowed));
        assert_eq!(judged(&filter, Way::Out, &question), Ok(()));
        assert_eq!(judged(&filter, Way::In, &answer), Ok(()));
        assert_eq!(judged(&filter, Way::In, &with(answer, 6, &OTHER)), Err(Reason::FlowMac));
        let (request, reply, protocol) = if guest.contains(':') { (128, 129, 58) } else { (8, 0, 1) };
        let ping = out((guest, allowed), protocol, &icmp(request, 7, b""));
        let pong = into((allowed, guest), protocol, &icmp(reply, 7, b""));
        assert_eq!(judged(&filter, Way::In, &pong), Err(Reason::NoFlow));
        assert_eq!(judged(&filter, Way::Out, &ping), Ok(()));
        assert_eq!(judged(&filter, Way::In, &pong), Ok(()));
        let other = into((allowed, guest), protocol, &icmp(reply, 8, b""));
        assert_eq!(judged(&filter, Way::In, &other), Err(Reason::NoFlow));
        let asked = into((allowed, guest), protocol, &icmp(request, 7, b""));
        assert_eq!(judged(&filter, Way::In, &asked), Err(Reason::NotAllowed));
    }
}

#[test]
fn errors_need_a_flow() {
    let filter = with_policy();
    for [guest, allowed, denied, ..] in FAMILIES {
        let v6 = guest.contains(':');
        let (too_big, redirect, protocol) = if v6 { (2, 137, 58) } else { (3, 5, 1) };
        let question = out((guest, allowed), 17, &udp((5, 53), b"a long question"));
        let quoting = |message: u8, frame: &[u8]| {
            let quoted = frame[PACKET..][..if v6 { 48 } else { 28 }].to_vec();
            let router = if v6 { "2001:db8:77::1" } else { "203.0.113.200" };
            into((router, guest), protocol, &icmp(message, 0, &quoted))
        };
        assert_eq!(judged(&filter, Way::In, &quoting(too_big, &question)), Err(Reason::IcmpError));
        judged(&filter, Way::Out, &question).unwrap();
        assert_eq!(judged(&filter, Way::In, &quoting(too_big, &question)), Ok(()));
        let forged = out((guest, allowed), 17, &udp((5, 54), b"a long question"));
        assert_eq!(judged(&filter, Way::In, &quoting(too_big, &forged)), Err(Reason::IcmpError));
        let elsewhere = out((guest, denied), 17, &udp((5, 53), b"a long question"));
        assert_eq!(judged(&filter, Way::In, &quoting(too_big, &elsewhere)), Err(Reason::IcmpError));
        assert_eq!(judged(&filter, Way::In, &quoting(redirect, &question)), Err(Reason::Redirect));
        // Of the guest: about what it got, and not too often.
        let answer = into((allowed, guest), 17, &udp((53, 5), b"an answer"));
        let quoted = &answer[PACKET..][..if v6 { 48 } else { 28 }];
        let unreachable = out((guest, allowed), protocol, &icmp(if v6 { 1 } else { 3 }, 0, quoted));
        let verdicts: Vec<_> = (0..60).map(|_| judged(&filter, Way::Out, &unreachable)).collect();
        assert!(verdicts[0].is_ok() && verdicts.contains(&Err(Reason::IcmpRate)) || v6);
        let to_another = out((guest, denied), protocol, &icmp(if v6 { 1 } else { 3 }, 0, quoted));
        assert_eq!(judged(&filter, Way::Out, &to_another), Err(Reason::IcmpError));
    }
}

#[test]
fn a_changed_policy_judges_old_flows_anew() {
    let filter = with_policy();
    let question = out(("192.0.2.10", "198.51.100.7"), 17, &udp((5, 53), b"?"));
    let answer = into(("198.51.100.7", "192.0.2.10"), 17, &udp((53, 5), b"!"));
    assert_eq!(judged(&filter, Way::Out, &question), Ok(()));
    let same = filter.with_policy(Some(POLICY_TEXT.to_owned())).unwrap();
    assert_eq!(judged(&same, Way::In, &answer), Ok(()));
    let narrow = POLICY_TEXT.replace("198.51.100.0/24", "198.51.100.8");
    let other = same.with_policy(Some(narrow)).unwrap();
    assert_eq!(judged(&other, Way::In, &answer), Err(Reason::NotAllowed));
    assert_eq!(judged(&other, Way::Out, &question), Err(Reason::NotAllowed));
    // The flow is gone: its answers do not come back with the first policy.
    let again = other.with_policy(Some(POLICY_TEXT.to_owned())).unwrap();
    assert_eq!(judged(&again, Way::In, &answer), Err(Reason::NotAllowed));
    show(&again);
    assert_eq!(judged(&again, Way::Out, &question), Ok(()));
}

/// The next hop of a known flow is that of the policy in force.
#[test]
fn a_changed_network_holds_for_old_flows() {
    let filter = with_policy();
    let question = out(("192.0.2.10", "198.51.100.7"), 17, &udp((5, 53), b"?"));
    assert_eq!(judged(&filter, Way::Out, &question), Ok(()));
    let text = POLICY_TEXT.replace("[network]", "[network]\ngateway-mac = \"02:00:00:00:00:09\"");
    let other = filter.with_policy(Some(text)).unwrap();
    assert_eq!(judged(&other, Way::Out, &question), Err(Reason::FlowMac));
    assert_eq!(judged(&other, Way::Out, &with(question, 0, &OTHER)), Ok(()));
}

/// A neighbour that talks is known, although nobody asks for it any more.
#[test]
fn a_neighbour_that_talks_is_not_forgotten() {
    let filter = with_policy();
    let at = |frame: Vec<u8>, now| filter.judge(Way::Out, &mut frame.clone(), frame.len(), now);
    let segment = |port, flags| {
        let segment = tcp((port, 5432), flags, (1, 0), 0);
        packet((OTHER, GUEST), ("192.0.2.10", "192.0.2.7"), 6, &segment)
    };
    for now in (1000..9000).step_by(50) {
        assert_eq!(at(segment(1000, SYN), now), Verdict::Pass, "{now}");
    }
    assert_eq!(at(segment(1001, SYN), 9000), Verdict::Pass);
}

#[test]
fn a_full_table_refuses_new_flows_only() {
    let filter = with_policy();
    let opens = |port| out(("192.0.2.10", "198.51.100.7"), 17, &udp((port, 53), b"?"));
    for port in 0..64 {
        assert_eq!(judged(&filter, Way::Out, &opens(port)), Ok(()), "{port}");
    }
    assert_eq!(judged(&filter, Way::Out, &opens(64)), Err(Reason::TableFull));
    assert!((0..64).all(|port| judged(&filter, Way::Out, &opens(port)) == Ok(())));
    assert_eq!(filter.flows(), 64);
}

#[test]
fn the_next_process_goes_on() {
    let setup = setup(Some(POLICY_TEXT));
    let words = Words((0..Filter::words(&setup)).map(|_| AtomicU64::new(0)).collect());
    let memory: Memory = Arc::new(words);
    let first = Filter::new(setup.clone(), memory.clone(), [7, 9]).unwrap();
    show(&first);
    judged(&first, Way::Out, &out(("192.0.2.10", "198.51.100.7"), 17, &udp((5, 53), b"?"))).unwrap();
    let next = Filter::new(setup, memory, [1, 1]).unwrap();
    let answer = into(("198.51.100.7", "192.0.2.10"), 17, &udp((53, 5), b"!"));
    assert_eq!(judged(&next, Way::In, &answer), Ok(()));
    assert_eq!(next.flows(), 1);
}

#[test]
fn log_mode_refuses_what_the_guard_refuses_only() {
    let filter = filter(setup(Some(&POLICY_TEXT.replace("enforce", "log"))));
    show(&filter);
    let mut refused = out(("192.0.2.10", "203.0.113.7"), 17, &udp((5, 53), b"?"));
    let len = refused.len();
    assert_eq!(filter.judge(Way::Out, &mut refused, len, 0), Verdict::Note(Reason::NotAllowed));
    // The flow goes on.
    assert_eq!(filter.judge(Way::Out, &mut refused, len, 0), Verdict::Pass);
    assert!(filter.reply(&refused, Reason::NotAllowed, 0).is_none());
    let mut spoofed = with(refused, 6, &OTHER);
    assert_eq!(filter.judge(Way::Out, &mut spoofed, len, 0), Verdict::Refuse(Reason::SourceMac));
    let count = |reason| filter.refused().find(|(way, of, _)| (*way, *of) == (Way::Out, reason)).unwrap().2;
    assert_eq!((count(Reason::NotAllowed), count(Reason::SourceMac), count(Reason::Arp)), (1, 1, 0));
}
