//! Requests and their answers.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use log::{debug, warn};
use rustix::process::geteuid;
use serde_json::{Map, Value, json};
use volt_http::server::{Outcome, ServeError, Turn, WorkError};
use volt_http::{Body, Head, JSON, Method, RequestError, Response, Service, StatusCode, Target};
use volt_net::limiter::{LimitsChange, Rate};
use volt_program::metrics::Format;
use volt_program::unix::check_user;
use volt_virtio::error_chain;

use crate::api::answer::{Answer, error};
use crate::api::completion::Completion;
use crate::api::metrics::families;
use crate::api::path::{self, PathError, Route};
use crate::api::plug;
use crate::api::status::{MachineState, MachineStatus};
use crate::board::exit::ExitReason;
use crate::machine::handle::MachineHandle;
use crate::virtio::handle::{DeviceKind, LimitsError};
use crate::virtio::status::LimitsStatus;

/// How long a client may take for the head of its request, and for its body.
pub(super) const LIMIT: Duration = Duration::from_secs(5);

/// The context of every request.
pub(super) struct Serving {
    pub(super) machine: Arc<MachineHandle>,
    /// How long a request may take.
    pub(super) limit: Duration,
}

impl Service for Serving {
    type Task = Route;

    /// Refuses clients of other users.
    fn accept(&self, head: &Head, client: BorrowedFd<'_>) -> Result<Route, Response> {
        if let Err(stranger) = check_user(&client) {
            warn!(event = "api_refused"; "{stranger} may not use the API");
            let owner = geteuid().as_raw();
            let text = format!("this API is for user {owner} and root, and you are {stranger}");
            return Err(response(error(StatusCode::FORBIDDEN, text)));
        }
        let route = route(head.method(), head.target()).map(|route| match route {
            Route::Metrics(_) => Route::Metrics(Format::accepted(head.accepts())),
            other => other,
        });
        route.map_err(|(code, body)| {
            let answer = response((code, body));
            match allowed(head.target().path()) {
                Some(methods) if code == StatusCode::METHOD_NOT_ALLOWED => answer.allow(&methods),
                _ => answer,
            }
        })
    }

    fn answer(&self, route: Route, body: Body, turn: &Turn<'_>) -> Response {
        if let Route::Metrics(format) = route {
            return metrics(&self.machine, format, turn);
        }
        response(carry_out(self, route, body, turn))
    }

    fn refuse(&self, status: StatusCode, why: &RequestError) -> Response {
        response(match why {
            RequestError::Ends => machine_ends(),
            RequestError::BodyLate(_) => error(status, "the body did not arrive".to_owned()),
            RequestError::BodyEnds => error(status, format!("the body cannot be read: {why}")),
            _ => error(status, why.to_string()),
        })
    }

    fn report(&self, why: &ServeError) {
        match why {
            ServeError::Accept(why) => warn!(
                event = "api_accept_failed";
                "a client of the API cannot be accepted: {why}"
            ),
            _ => debug!("a client of the API: {}", error_chain(why)),
        }
    }
}

fn response((code, body): Answer) -> Response {
    Response::new(code, JSON, format!("{body:#}\n"))
}

fn machine_ends() -> Answer {
    error(StatusCode::SERVICE_UNAVAILABLE, "the machine ends".to_owned())
}

/// Returns the methods of a path.
fn allowed(path: &str) -> Option<Vec<Method>> {
    Some(path::routes(path).ok()?.into_iter().map(|(method, _)| method).collect())
}

fn route(method: &Method, target: &Target) -> Result<Route, Answer> {
    let path = target.path();
    if target.query().is_some() {
        let text = format!("{path} takes no query: in a name, write ? as %3F and # as %23");
        return Err(error(StatusCode::BAD_REQUEST, text));
    }
    let routes = path::routes(path).map_err(|lost| match lost {
        PathError::Unknown => {
            error(StatusCode::NOT_FOUND, format!("there is no {path}: see docs/reference/http-api.md"))
        }
        PathError::NotUtf8 => error(StatusCode::BAD_REQUEST, format!("the name in {path} is not UTF-8")),
    })?;
    let methods: Vec<_> = routes.iter().map(|(by, _)| by.as_str()).collect();
    let text = format!("{path} takes {}, not {method}", methods.join(", "));
    let asked = routes.into_iter().find(|(by, _)| by == method).map(|(_, route)| route);
    asked.ok_or_else(|| error(StatusCode::METHOD_NOT_ALLOWED, text))
}

/// Carries out the request on another thread, so that a slow one does not hold up other clients.
fn carry_out(serving: &Serving, route: Route, body: Body, turn: &Turn<'_>) -> Answer {
    let Serving { machine, limit } = serving;
    if route == Route::Shutdown {
        // On this thread: otherwise the end that it causes would come before its answer.
        return shutdown(machine);
    }
    let (completion, machine) = (Arc::new(Completion::default()), machine.clone());
    let ending = turn.ending();
    let (its, what) = (completion.clone(), route.clone());
    let done = turn.carry_out(move || {
        let (code, body) = act(&machine, &route, body, &its);
        if !its.finish() && !ending.has_begun() {
            warn!(
                event = "api_answered_before", route:%;
                "{route} finished after its client got status 504: {code}, {body}"
            );
        }
        (code, body)
    });
    let late = match done {
        Outcome::Done(answer) => return answer,
        Outcome::Ends => {
            completion.give_up();
            return machine_ends();
        }
        // Its request is carried out and stays in force. Nobody reads this answer.
        Outcome::Gone => return error(StatusCode::GATEWAY_TIMEOUT, "the client is gone".to_owned()),
        Outcome::Failed(why) => return not_begun(&what, &why),
        Outcome::Late(late) => late,
    };
    let outcome = if completion.give_up() {
        what.when_late()
    } else if let Some(answer) = late.wait(LIMIT) {
        return answer;
    } else {
        "it will still be done; see the status"
    };
    let text = format!("{what} takes more than {} s: {outcome}", limit.as_secs_f32());
    error(StatusCode::GATEWAY_TIMEOUT, text)
}

/// Answers with the metrics. On another thread, because devices may be slow to report.
fn metrics(machine: &Arc<MachineHandle>, format: Format, turn: &Turn<'_>) -> Response {
    let its = machine.clone();
    match turn.carry_out(move || families(&its).text(format)) {
        Outcome::Done(text) => Response::new(StatusCode::OK, format.content_type(), text),
        Outcome::Failed(why) => response(not_begun(&Route::Metrics(format), &why)),
        Outcome::Ends => response(machine_ends()),
        Outcome::Late(_) | Outcome::Gone => {
            response(error(StatusCode::GATEWAY_TIMEOUT, "a device does not report its status".to_owned()))
        }
    }
}

fn not_begun(what: &Route, why: &WorkError) -> Answer {
    let code = match why {
        // The panic has already ended the process.
        WorkError::Panicked => StatusCode::INTERNAL_SERVER_ERROR,
        WorkError::TooMany(_) | WorkError::Thread(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    error(code, format!("{what} cannot be done now: {}", error_chain(why)))
}

fn act(machine: &MachineHandle, route: &Route, body: Body, completion: &Completion) -> Answer {
    match route {
        Route::Status => status(machine),
        Route::Pause => pause(machine, completion),
        Route::Resume => {
            machine.pause.resume();
            (StatusCode::OK, json!({ "state": state(machine) }))
        }
        Route::PowerButton => {
            machine.power_button.press();
            (StatusCode::OK, json!({}))
        }
        // Carried out above.
        Route::Shutdown => shutdown(machine),
        // Answered above, because they are not JSON.
        Route::Metrics(_) => (StatusCode::NOT_FOUND, json!({})),
        Route::Limits(net) => limits(machine, net, &body.bytes),
        Route::Add(kind) => plug::add(machine, *kind, body, completion),
        Route::Remove(kind, name) => plug::remove(machine, *kind, name),
    }
}

fn state(machine: &MachineHandle) -> MachineState {
    if machine.pause.is_paused() { MachineState::Paused } else { MachineState::Running }
}

fn status(machine: &MachineHandle) -> Answer {
    let status = MachineStatus {
        program: concat!("volt-vmm ", env!("CARGO_PKG_VERSION")).to_owned(),
        pid: std::process::id(),
        uptime_seconds: machine.started.elapsed().as_secs(),
        state: state(machine),
        cpus: machine.cpus.into(),
        memory_bytes: machine.memory,
        devices: machine.devices.status(),
    };
    (StatusCode::OK, json!(status))
}

/// Pauses the machine. A pause that comes too late is undone, because the client relies on a running guest.
fn pause(machine: &MachineHandle, completion: &Completion) -> Answer {
    match machine.pause.pause() {
        Ok(true) if !completion.finish() => {
            machine.pause.resume();
            error(StatusCode::GATEWAY_TIMEOUT, "the pause came too late: the machine runs".to_owned())
        }
        Ok(_) => (StatusCode::OK, json!({ "state": state(machine) })),
        Err(why) => {
            let text = format!("the machine still runs, try again: {}", error_chain(&why));
            error(StatusCode::SERVICE_UNAVAILABLE, text)
        }
    }
}

/// Ends the machine at once, like a signal, without asking the guest.
fn shutdown(machine: &MachineHandle) -> Answer {
    machine.exit.request(ExitReason::Api);
    (StatusCode::OK, json!({}))
}

fn limits(machine: &MachineHandle, net: &str, body: &[u8]) -> Answer {
    let change = parse_limits(body);
    let device = match machine.devices.with(DeviceKind::Net, net, |device| device.handle.clone()) {
        Ok(device) => device,
        Err(why) => return error(StatusCode::NOT_FOUND, why.to_string()),
    };
    let change = match change {
        Ok(change) => change,
        Err(text) => return error(StatusCode::BAD_REQUEST, text),
    };
    match device.change_limits(change) {
        Ok(limits) => (StatusCode::OK, json!(LimitsStatus::from(limits))),
        Err(why @ LimitsError::Gone) => error(StatusCode::NOT_FOUND, why.to_string()),
        Err(why) => error(StatusCode::CONFLICT, why.to_string()),
    }
}

/// Parses `{"rx_rate": "100Mbit", "tx_rate": "none"}`, with at least one of them. Hyphens are accepted, too,
/// as in version 0.1.
///
/// Not a serde struct: its errors do not name the limit, and it would treat the two spellings of a limit as a
/// duplicate key.
fn parse_limits(body: &[u8]) -> Result<LimitsChange, String> {
    const EXPECTED: &str = r#"expected an object like {"rx_rate": "100Mbit", "tx_rate": "none"}"#;
    let object: Map<String, Value> =
        serde_json::from_slice(body).map_err(|error| format!("{EXPECTED}: {error}"))?;
    let mut change = LimitsChange::default();
    for (name, value) in &object {
        let text = value.as_str().ok_or_else(|| format!("{name} is not a string: {EXPECTED}"))?;
        let rate: Rate = text.parse().map_err(|error| format!("{name}: {error}"))?;
        match name.as_str() {
            "rx_rate" | "rx-rate" => change.rx = Some(rate),
            "tx_rate" | "tx-rate" => change.tx = Some(rate),
            _ => return Err(format!("unknown limit '{name}': {EXPECTED}")),
        }
    }
    if object.is_empty() { Err(EXPECTED.to_owned()) } else { Ok(change) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_of_limits_is_an_object_and_what_is_wrong_is_named() {
        const EXPECTED: &str = r#"expected an object like {"rx_rate": "100Mbit", "tx_rate": "none"}"#;
        let rate = |text: &str| Some(text.parse::<Rate>().unwrap());
        let change =
            parse_limits(br#"{"tx-rate": "5kpps", "rx_rate": "1Mbit", "rx-rate": "2Mbit"}"#).unwrap();
        assert_eq!((change.rx, change.tx), (rate("1Mbit"), rate("5kpps")));
        let wrong = "5".parse::<Rate>().unwrap_err();
        for (body, why) in [
            ("{}", EXPECTED.to_owned()),
            (r#"{"rx_rate": 5}"#, format!("rx_rate is not a string: {EXPECTED}")),
            (r#"{"rx-rate": null}"#, format!("rx-rate is not a string: {EXPECTED}")),
            (r#"{"tx_rate": "5"}"#, format!("tx_rate: {wrong}")),
            (r#"{"rate": "5pps"}"#, format!("unknown limit 'rate': {EXPECTED}")),
            (r#"{"rate": 5}"#, format!("rate is not a string: {EXPECTED}")),
            ("[]", format!("{EXPECTED}: invalid type: sequence, expected a map at line 1 column 0")),
        ] {
            assert_eq!(parse_limits(body.as_bytes()).unwrap_err(), why, "{body}");
        }
    }
}
