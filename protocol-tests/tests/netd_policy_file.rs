//! `volt-netd policy` checks policy files, and explains what they allow.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use protocol_tests::daemon::program;
use protocol_tests::lab::repository;

/// What a command left.
struct Ended {
    status: Option<i32>,
    output: String,
    errors: String,
}

/// Runs `volt-netd policy` with this text on standard input.
fn policy(args: &[&str], input: &[u8]) -> Ended {
    let mut command = Command::new(program("volt-netd"));
    command.arg("policy").args(args).current_dir(repository().join("docs/examples/policy"));
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("volt-netd");
    // The program closes its standard input early if it reads a file or enough of a text.
    let _ = child.stdin.take().expect("standard input").write_all(input);
    let ended = child.wait_with_output().expect("an end");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    Ended { status: ended.status.code(), output: text(ended.stdout), errors: text(ended.stderr) }
}

#[test]
fn examples_are_listed() {
    for (name, lines) in [
        ("agent.toml", &["gateway-mac  52:54:00:20:00:01", "33    allow to  10.30.0.8 "][..]),
        (
            "ci-runner.toml",
            &["gateway-mac  the first that answers", "443, 8000-8003", "dhcp         192.168.40.1"],
        ),
        (
            "public-service.toml",
            &["refuse       drop", "neighbour    192.0.2.20 52:54:00:80:00:20", "deny from"],
        ),
        ("nothing.toml", &["mode         enforce", "no rules: no flow is allowed"]),
    ] {
        let ended = policy(&["check", name], b"");
        assert_eq!((ended.status, ended.errors.as_str()), (Some(0), ""), "{name}");
        for line in lines {
            assert!(ended.output.contains(line), "{name}: no '{line}' in\n{}", ended.output);
        }
        assert!(!ended.output.contains("warning"), "{}", ended.output);
    }
}

#[test]
fn likely_mistakes_are_warnings() {
    let ended = policy(&["check", "-"], b"[[allow]]\nto = \"198.51.100.1\"\n");
    assert_eq!((ended.status, ended.errors.as_str()), (Some(0), ""));
    let warning =
        "warning: [network]: no IPv4 address in 'gateways': 198.51.100.1 (line 1) is not on the link";
    assert!(ended.output.contains(warning), "{}", ended.output);
}

#[test]
fn unusable_files_are_errors() {
    let large = "#".repeat(256 * 1024 + 1);
    for (args, input, error) in [
        (
            ["check", "-"],
            &b"\n\n[[allow]]\nto = \"10.0.0.1/8\""[..],
            "standard input: line 4: '10.0.0.1/8' has bits",
        ),
        (
            ["check", "-"],
            b"mode = \"log\"\n\xff",
            "standard input: line 2: not UTF-8: save the file as UTF-8",
        ),
        (["check", "-"], large.as_bytes(), "standard input: the policy has more than 262144 bytes"),
        (["check", "none.toml"], b"", "cannot read none.toml: No such file or directory"),
        (["check", "/"], b"", "cannot read /: Is a directory"),
    ] {
        let ended = policy(&args, input);
        assert_eq!((ended.status, ended.output.as_str()), (Some(1), ""), "{error}");
        assert!(ended.errors.contains(error), "{}", ended.errors);
    }
    let ended = policy(&["explain", "-", "tcp 192.0.2.7 443"], b"mode = 1");
    assert_eq!(ended.status, Some(1));
    assert!(ended.errors.contains("standard input: line 1: "), "{}", ended.errors);
}

#[test]
fn answers_are_explained() {
    for (question, status, text) in [
        ("tcp 198.51.100.9 443", 0, "allowed: tcp 198.51.100.9 443\nrule: line "),
        ("tcp 198.51.100.9 443", 0, "next hop: the gateway 10.20.0.1, 52:54:00:20:00:01\n"),
        (
            "6 198.51.100.66 443",
            1,
            "refused: tcp 198.51.100.66 443\nreason: denied: a deny rule fits\nrule: line ",
        ),
        ("icmp 2001:db8:5::1", 1, "refused: icmp 2001:db8:5::1\nreason: not_allowed: no rule allows it\n"),
        ("from tcp 203.0.113.9 22", 1, "refused: from tcp 203.0.113.9 22\nreason: not_allowed: "),
        (
            "tcp 10.20.0.7 22",
            1,
            "10.20.0.7 is in 10.20.0.0/24 (on-link); no rule names an address or prefix within it\n",
        ),
        ("gre 198.51.100.9", 1, "reason: tunnel: no rule names the protocol gre\n"),
    ] {
        let ended = policy(&["explain", "agent.toml", question], b"");
        assert_eq!((ended.status, ended.errors.as_str()), (Some(status), ""), "{question}");
        assert!(ended.output.contains(text), "{question}: {}", ended.output);
    }
    let agent = fs::read(repository().join("docs/examples/policy/agent.toml")).expect("the example");
    assert_eq!(policy(&["explain", "-", "tcp 198.51.100.9 443"], &agent).status, Some(0));
}

#[test]
fn wrong_questions_are_wrong_command_lines() {
    for (question, error) in [
        ("tcp 192.0.2.7", "the port is missing: add it after the address"),
        ("http 192.0.2.7 80", "'http' is not a protocol: write tcp, udp, icmp"),
        ("tcp example.org 443", "'example.org' is not an IP address"),
    ] {
        let ended = policy(&["explain", "agent.toml", question], b"");
        assert_eq!((ended.status, ended.output.as_str()), (Some(2), ""), "{question}");
        assert!(ended.errors.contains(error), "{}", ended.errors);
    }
}

/// Returns the commands of a page's blocks, without `volt-netd policy`, and the output that they show.
fn shown(page: &str) -> Vec<(Vec<String>, String)> {
    let page = fs::read_to_string(repository().join(page)).expect("the page");
    let blocks = page.split("```console\n$ volt-netd policy ").skip(1);
    let shown = blocks.map(|block| {
        let block = block.split("```").next().expect("an end");
        let (command, output) = block.split_once('\n').expect("output");
        let (words, question) = command.split_once(" '").unwrap_or((command, ""));
        let mut args: Vec<_> = words.split(' ').map(String::from).collect();
        args.extend((!question.is_empty()).then(|| question.trim_end_matches('\'').into()));
        (args, output.to_owned())
    });
    let shown: Vec<_> = shown.collect();
    assert!(shown.len() >= 3, "only {} commands are shown", shown.len());
    shown
}

/// The pages show what the commands print. The guide shows the file, too.
#[test]
fn the_pages_show_real_output() {
    for (args, output) in shown("docs/reference/policy.md") {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        assert_eq!(output, policy(&args, b"").output, "{args:?}");
    }
    let guide = fs::read_to_string(repository().join("docs/how-to/filter.md")).expect("the guide");
    let file = guide.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a file");
    for (mut args, output) in shown("docs/how-to/filter.md") {
        assert_eq!(args[1], "/etc/volt/netd/tap0.toml");
        args[1] = "-".into();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        assert_eq!(output, policy(&args, file.as_bytes()).output, "{args:?}");
    }
}
