//! What can be asked, and what is answered.

use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Collected, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri};
use log::warn;
use rustix::process::geteuid;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{sleep, timeout};
use volt_net::net::limiter::{LimitsChange, Rate};
use volt_net::unix::Stranger;

use crate::api::LIMIT;
use crate::api::order::Order;
use crate::api::path::{self, Lost, Route};
use crate::api::plug;
use crate::devices::{Devices, Kind};
use crate::exit::{ExitEvent, ExitReason};
use crate::gate::Gate;
use crate::pause::Pause;
use crate::power::PowerButton;
use crate::virtio::faults::chain;
use crate::virtio::net::{RateControlError, limits_json};

/// Most bytes of a request's body.
const BODY_MAX: usize = 4096;

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
    /// The devices.
    pub devices: Arc<Devices>,
    /// What the threads of those to come pass.
    pub gate: Arc<Gate>,
    /// The end.
    pub exit: Arc<ExitEvent>,
    /// Stops everything for a while.
    pub pause: Pause,
    /// Asks the guest to end.
    pub power_button: Arc<PowerButton>,
}

pub(super) type Answer = (StatusCode, Value);

/// What every request meets.
pub(super) struct Serving {
    pub(super) machine: Arc<Machine>,
    /// How long carrying out a request may take.
    pub(super) limit: Duration,
    /// Becomes true when the machine ends.
    pub(super) ends: watch::Receiver<bool>,
}

/// Answers a request, of a `stranger` that it is none of his business.
pub(super) async fn answer(
    request: Request<Incoming>,
    serving: &Serving,
    stranger: Option<&Stranger>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let route = match stranger {
        Some(stranger) => {
            let owner = geteuid().as_raw();
            let text = format!("this API is for user {owner} and root, and you are {stranger}");
            Err(error(StatusCode::FORBIDDEN, text))
        }
        None => route(&parts.method, &parts.uri),
    };
    let (code, body) = match route {
        Ok(route) => match timeout(LIMIT, collected(body, serving)).await {
            Ok(None) => machine_ends(),
            Ok(Some(Ok(body))) => carry_out(serving, route, body.to_bytes()).await,
            Ok(Some(Err(broken))) if broken.is::<LengthLimitError>() => {
                error(StatusCode::PAYLOAD_TOO_LARGE, format!("a body has at most {BODY_MAX} bytes"))
            }
            Ok(Some(Err(broken))) => {
                error(StatusCode::BAD_REQUEST, format!("the body cannot be read: {broken}"))
            }
            Err(_) => error(StatusCode::REQUEST_TIMEOUT, "the body does not come".to_owned()),
        },
        Err(answer) => answer,
    };
    let mut response = Response::new(Full::new(Bytes::from(format!("{body:#}\n"))));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if code == StatusCode::METHOD_NOT_ALLOWED
        && let Some(allowed) = allowed(parts.uri.path()).and_then(|allowed| allowed.try_into().ok())
    {
        headers.insert(ALLOW, allowed);
    }
    Ok(response)
}

/// The body, when it is there; `None` if the machine ends before.
async fn collected(
    body: Incoming,
    serving: &Serving,
) -> Option<Result<Collected<Bytes>, Box<dyn Error + Send + Sync>>> {
    let mut ends = serving.ends.clone();
    tokio::select! {
        body = Limited::new(body, BODY_MAX).collect() => Some(body),
        _ = ends.wait_for(|ends| *ends) => None,
    }
}

fn machine_ends() -> Answer {
    error(StatusCode::SERVICE_UNAVAILABLE, "the machine ends".to_owned())
}

/// The methods by which a path is asked.
fn allowed(path: &str) -> Option<String> {
    let methods: Vec<_> =
        path::routes(path).ok()?.into_iter().map(|(method, _)| method.to_string()).collect();
    Some(methods.join(", "))
}

fn route(method: &Method, uri: &Uri) -> Result<Route, Answer> {
    let path = uri.path();
    if uri.query().is_some() {
        let text = format!("{path} is asked without a query: in a name, write ? as %3F and # as %23");
        return Err(error(StatusCode::BAD_REQUEST, text));
    }
    let routes = path::routes(path).map_err(|lost| match lost {
        Lost::Unknown => error(StatusCode::NOT_FOUND, format!("there is no {path}: see docs/api.md")),
        Lost::NotUtf8 => error(StatusCode::BAD_REQUEST, format!("the name in {path} is no UTF-8")),
    })?;
    routes.into_iter().find(|(by, _)| by == method).map(|(_, route)| route).ok_or_else(|| {
        let allowed = allowed(path).unwrap_or_default();
        error(StatusCode::METHOD_NOT_ALLOWED, format!("{path} is asked by {allowed}, not {method}"))
    })
}

/// Does what is asked for, on another thread, as it may take its time and others do not wait for it.
async fn carry_out(serving: &Serving, route: Route, body: Bytes) -> Answer {
    let Serving { machine, limit, ends } = serving;
    if route == Route::Shutdown {
        // Here, as the end that it brings about would come before its answer.
        return shutdown(machine);
    }
    let (order, machine, mut ends) = (Arc::new(Order::default()), machine.clone(), ends.clone());
    let (its, what, ending) = (order.clone(), route.clone(), ends.clone());
    let mut done = spawn_blocking(move || {
        let (code, body) = act(&machine, &route, &body, &its);
        if !its.finish() && !*ending.borrow() {
            warn!("{route}: its client was answered before, and this came of it: {code}, {body}");
        }
        (code, body)
    });
    // A panic has ended the process by now.
    let panicked = |panic: JoinError| error(StatusCode::INTERNAL_SERVER_ERROR, panic.to_string());
    tokio::select! {
        done = &mut done => return done.unwrap_or_else(panicked),
        _ = ends.wait_for(|ends| *ends) => {
            order.give_up();
            return machine_ends();
        }
        () = sleep(*limit) => {}
    }
    let outcome = if order.give_up() {
        what.when_late()
    } else if let Ok(done) = timeout(LIMIT, done).await {
        return done.unwrap_or_else(panicked);
    } else {
        "it is being done all the same, and the status will show it"
    };
    let text = format!("{what} takes more than {} s: {outcome}", limit.as_secs_f32());
    error(StatusCode::GATEWAY_TIMEOUT, text)
}

fn act(machine: &Machine, route: &Route, body: &[u8], order: &Order) -> Answer {
    match route {
        Route::Status => status(machine),
        Route::Pause => pause(machine, order),
        Route::Resume => {
            machine.pause.resume();
            (StatusCode::OK, state(machine))
        }
        Route::PowerButton => {
            machine.power_button.press();
            (StatusCode::OK, json!({}))
        }
        // Carried out before, as above.
        Route::Shutdown => shutdown(machine),
        Route::Limits(net) => limits(machine, net, body),
        Route::Add(kind) => plug::add(machine, *kind, body, order),
        Route::Remove(kind, name) => plug::remove(machine, *kind, name),
    }
}

pub(super) fn error(code: StatusCode, text: String) -> Answer {
    (code, json!({ "error": text }))
}

fn state(machine: &Machine) -> Value {
    json!({ "state": if machine.pause.is_paused() { "paused" } else { "running" } })
}

fn status(machine: &Machine) -> Answer {
    let status = json!({
        "program": concat!("volt-vmm ", env!("CARGO_PKG_VERSION")),
        "pid": std::process::id(),
        "uptime_seconds": machine.started.elapsed().as_secs(),
        "state": state(machine)["state"],
        "cpus": machine.cpus,
        "memory_bytes": machine.memory,
        "devices": machine.devices.status(),
    });
    (StatusCode::OK, status)
}

/// A pause that comes too late is none: whoever asked goes by that the guest runs.
fn pause(machine: &Machine, order: &Order) -> Answer {
    match machine.pause.pause() {
        Ok(true) if !order.finish() => {
            machine.pause.resume();
            error(StatusCode::GATEWAY_TIMEOUT, "the machine was paused too late, and runs on".to_owned())
        }
        Ok(_) => (StatusCode::OK, state(machine)),
        Err(why) => {
            let text = format!("the machine runs on, try again: {}", chain(&why));
            error(StatusCode::SERVICE_UNAVAILABLE, text)
        }
    }
}

/// Ends the machine as a signal would: at once, without asking the guest.
fn shutdown(machine: &Machine) -> Answer {
    machine.exit.request(ExitReason::Api);
    (StatusCode::OK, json!({}))
}

fn limits(machine: &Machine, net: &str, body: &[u8]) -> Answer {
    let change = parse_limits(body);
    let data = match machine.devices.with(Kind::Net, net, |device| device.data.clone()) {
        Ok(data) => data,
        Err(why) => return error(StatusCode::NOT_FOUND, why.to_string()),
    };
    let change = match change {
        Ok(change) => change,
        Err(text) => return error(StatusCode::BAD_REQUEST, text),
    };
    let Some(data) = data else {
        let text = "a vhost-user back-end moves this device's frames: ask that ('volt-netd ctl limits')";
        return error(StatusCode::CONFLICT, text.to_owned());
    };
    match data.change_limits(change) {
        Ok(limits) => (StatusCode::OK, limits_json(limits)),
        Err(why @ RateControlError::Gone) => error(StatusCode::NOT_FOUND, why.to_string()),
        Err(why) => error(StatusCode::CONFLICT, why.to_string()),
    }
}

/// `{"rx_rate": "100Mbit", "tx_rate": "none"}`, one of them at least. With hyphens, too, as version 0.1 had them.
fn parse_limits(body: &[u8]) -> Result<LimitsChange, String> {
    const EXPECTED: &str = r#"expected an object like {"rx_rate": "100Mbit", "tx_rate": "none"}"#;
    let object: Map<String, Value> =
        serde_json::from_slice(body).map_err(|error| format!("{EXPECTED}: {error}"))?;
    let mut change = LimitsChange::default();
    for (name, value) in &object {
        let text = value.as_str().ok_or_else(|| format!("{name} is no text: {EXPECTED}"))?;
        let rate: Rate = text.parse().map_err(|error| format!("{name}: {error}"))?;
        match name.as_str() {
            "rx_rate" | "rx-rate" => change.rx = Some(rate),
            "tx_rate" | "tx-rate" => change.tx = Some(rate),
            _ => return Err(format!("unknown limit '{name}': {EXPECTED}")),
        }
    }
    if object.is_empty() { Err(EXPECTED.to_owned()) } else { Ok(change) }
}
