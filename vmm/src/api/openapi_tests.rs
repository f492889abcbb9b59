//! Compares the API with `docs/reference/openapi.json`: it has the same paths and methods, and its answers
//! match the schemas.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::{fs, thread};

use serde_json::{Value, json};
use volt_http::Method;
use volt_http::client::{Limits, Request, ask};

use super::path::{Route, routes};
use super::plug_tests::rig;
use super::*;
use crate::virtio::net::vhost_user::scripted::{End, serve};

/// Checks answers against the document, both as JSON on standard input. The library is Debian's
/// python3-jsonschema, which `scripts/setup` installs.
const VALIDATOR: &str = r#"
import json, sys
import jsonschema
document, answers = json.load(sys.stdin)

# Clients must accept keys that are added later. Here each key must be documented.
def walk(node):
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else []:
        yield from walk(child)

schemas = list(walk(document["components"]["schemas"]))
parts = [part for schema in schemas for part in schema.get("allOf", [])]
parts += [document["components"]["schemas"][part["$ref"].split("/")[-1]] for part in parts if "$ref" in part]
for schema in schemas:
    if ("properties" in schema or "allOf" in schema) and not any(schema is part for part in parts):
        schema["unevaluatedProperties"] = False

resolver = jsonschema.RefResolver.from_schema(document)
for path, method, status, body in answers:
    responses = document["paths"][path][method]["responses"]
    response = responses.get(str(status)) or responses["default"]
    if "$ref" in response:
        response = resolver.resolve(response["$ref"])[1]
    schema = response["content"]["application/json"]["schema"]
    for error in jsonschema.Draft202012Validator(schema, resolver=resolver).iter_errors(body):
        where = "/".join(map(str, error.absolute_path))
        print(f"{method} {path}, answer {status}, at /{where}: {error.message}")
"#;

fn document() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/openapi.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Returns the errors in these answers, each of path, method, status and body.
fn errors(document: &Value, answers: &[Value]) -> String {
    let mut python = Command::new("/usr/bin/python3");
    let python = python.args(["-W", "ignore", "-c", VALIDATOR]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut python = python.spawn().expect("python3");
    let input = json!([document, answers]).to_string();
    python.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "python3-jsonschema is missing: scripts/setup installs it");
    String::from_utf8(output.stdout).unwrap()
}

/// A new route does not compile without a name here, and the test fails until the route is documented.
fn name(route: &Route) -> &'static str {
    match route {
        Route::Metrics(_) => "metrics",
        Route::Status => "status",
        Route::Pause => "pause",
        Route::Resume => "resume",
        Route::PowerButton => "power button",
        Route::Shutdown => "shutdown",
        Route::Add(_) => "add",
        Route::Remove(..) => "remove",
        Route::Limits(_) => "limits",
    }
}

#[test]
fn each_route_is_documented() {
    let mut seen = BTreeSet::new();
    for (path, item) in document()["paths"].as_object().unwrap() {
        let routes = routes(&path.replace("{name}", "tap0")).unwrap();
        for method in item.as_object().unwrap().keys().filter(|key| *key != "parameters") {
            let method = method.to_uppercase();
            let route = routes.iter().find(|(by, _)| by.as_str() == method);
            let (_, route) = route.unwrap_or_else(|| panic!("the API has no {method} {path}"));
            seen.insert(name(route));
        }
        // `DELETE .../limits` removes a device whose name ends with `/limits`.
        let documented = item.as_object().unwrap().len() - usize::from(item.get("parameters").is_some());
        assert!(path.ends_with("/limits") || routes.len() == documented, "{path}");
    }
    let all = ["add", "limits", "metrics", "pause", "power button", "remove", "resume", "shutdown", "status"];
    assert_eq!(seen, all.into());
}

/// Sends a request to `path`, which the document calls `documented`.
fn answer(socket: &Path, method: Method, documented: &str, path: &str, body: Option<Value>) -> Value {
    let stream = UnixStream::connect(socket).unwrap();
    let text = body.map(|body| body.to_string()).unwrap_or_default();
    let request = Request { method: &method, path, body: text.as_bytes(), descriptors: &[] };
    let answer = ask(&stream, &request, &Limits { time: WORK_LIMIT, body: 1 << 20 }).unwrap();
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    json!([documented, method.as_str().to_lowercase(), answer.status.as_u16(), body])
}

#[test]
fn answers_are_as_documented() {
    let Some(rig) = rig("answers_are_as_documented") else { return };
    let back_end = rig.dir.path().join("back-end");
    let listener = UnixListener::bind(&back_end).unwrap();
    let served = thread::spawn(move || serve(&listener, 1, End::Theirs));
    let disk = rig.dir.path().join("disk");
    fs::write(&disk, [0; 512]).unwrap();
    let options = |text: String| Some(json!({ "options": text }));
    let (net, named) = ("/v1/net", |path: &Path| super::path::encode(&path.display().to_string()));
    let (its_net, its_disk) = (format!("/v1/net/{}", named(&back_end)), format!("/v1/disk/{}", named(&disk)));

    let mut answers = Vec::new();
    let mut expect = |status: u16, method, documented: &str, path: &str, body| {
        let answer = answer(&rig.socket, method, documented, path, body);
        assert_eq!(answer[2], status, "{answer}");
        answers.push(answer);
    };
    expect(201, Method::POST, net, net, options(format!("socket={},mtu=1400", back_end.display())));
    expect(201, Method::POST, "/v1/disk", "/v1/disk", options(disk.display().to_string()));
    expect(409, Method::POST, "/v1/disk", "/v1/disk", options(disk.display().to_string()));
    expect(400, Method::POST, net, net, options("tap0".to_owned()));
    expect(200, Method::GET, "/v1/status", "/v1/status", None);
    for path in ["/v1/pause", "/v1/resume", "/v1/power-button"] {
        expect(200, Method::PUT, path, path, None);
    }
    let (limits, documented) = (Some(json!({ "rx_rate": "1Mbit" })), "/v1/net/{name}/limits");
    expect(404, Method::PUT, documented, "/v1/net/tap7/limits", limits);
    expect(404, Method::DELETE, "/v1/net/{name}", "/v1/net/tap7", None);
    expect(200, Method::DELETE, "/v1/net/{name}", &its_net, None);
    expect(200, Method::DELETE, "/v1/disk/{name}", &its_disk, None);
    expect(200, Method::PUT, "/v1/shutdown", "/v1/shutdown", None);
    served.join().unwrap();

    let document = document();
    assert_eq!(errors(&document, &answers), "");
    // An answer outside of the schemas is found.
    let status = answers.iter_mut().find(|answer| answer[0] == "/v1/status").unwrap();
    status[3]["devices"][0]["device"] = json!(7);
    let said = errors(&document, &answers);
    assert!(said.contains("at /devices/0: "), "{said}");
}
