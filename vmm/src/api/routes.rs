//! What can be asked, and what is answered.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use crate::exit::{ExitEvent, ExitReason};

/// Says how a device is, at any time and from any thread.
pub type Status = Box<dyn Fn() -> Value + Send + Sync>;

/// What the API shows and changes.
pub struct Machine {
    /// Number of vCPUs.
    pub cpus: u8,
    /// Bytes of guest memory.
    pub memory: u64,
    /// When the machine was built.
    pub started: Instant,
    /// The devices, in the order in which the guest finds them.
    pub devices: Vec<Status>,
    /// The end.
    pub exit: Arc<ExitEvent>,
}

type Answer = (StatusCode, Value);

/// Answers a request.
pub(super) async fn answer(
    request: Request<Incoming>,
    machine: &Machine,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (allowed, (code, body)) = route(request.method(), request.uri().path(), machine);
    let mut response = Response::new(Full::new(Bytes::from(format!("{body:#}\n"))));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if code == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static(allowed));
    }
    Ok(response)
}

/// The method that a path allows, and the answer.
fn route(method: &Method, path: &str, machine: &Machine) -> (&'static str, Answer) {
    let (allowed, carry_out): (&str, fn(&Machine) -> Answer) = match path {
        "/v1/status" => ("GET", status),
        "/v1/shutdown" => ("PUT", shutdown),
        _ => return ("", error(StatusCode::NOT_FOUND, format!("there is no {path}: see docs/api.md"))),
    };
    if method.as_str() == allowed {
        (allowed, carry_out(machine))
    } else {
        (
            allowed,
            error(StatusCode::METHOD_NOT_ALLOWED, format!("{path} is asked by {allowed}, not {method}")),
        )
    }
}

fn error(code: StatusCode, text: String) -> Answer {
    (code, json!({ "error": text }))
}

fn status(machine: &Machine) -> Answer {
    let devices: Vec<Value> = machine.devices.iter().map(|device| device()).collect();
    let status = json!({
        "program": concat!("volt-vmm ", env!("CARGO_PKG_VERSION")),
        "pid": std::process::id(),
        "uptime_seconds": machine.started.elapsed().as_secs(),
        "cpus": machine.cpus,
        "memory_bytes": machine.memory,
        "devices": devices,
    });
    (StatusCode::OK, status)
}

/// Ends the machine as a signal would: at once, without asking the guest.
fn shutdown(machine: &Machine) -> Answer {
    machine.exit.request(ExitReason::Api);
    (StatusCode::OK, json!({}))
}
