//! Adding and removing devices while the guest runs.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use volt_http::{Body, StatusCode};
use volt_virtio::error_chain;

use crate::api::answer::{Answer, error};
use crate::api::completion::Completion;
use crate::config::{DiskConfig, NetDeviceConfig};
use crate::machine::devices::PlugError;
use crate::machine::handle::MachineHandle;
use crate::virtio::blk::Block;
use crate::virtio::handle::DeviceKind;
use crate::virtio::{VirtioDevice, net};

/// How long a back-end may take to listen. Together with the steps after it, this is less than a client
/// waits.
const BACK_END_LIMIT: Duration = Duration::from_secs(2);
/// How long a guest may take to release a device until the client is told that it has not yet.
const GUEST_LIMIT: Duration = Duration::from_secs(8);

/// Opens the device that `body` describes, or takes the open disk that came with it, and plugs it in.
pub(super) fn add(machine: &MachineHandle, kind: DeviceKind, body: Body, completion: &Completion) -> Answer {
    match try_add(machine, kind, body, completion) {
        Ok(slot) => (StatusCode::CREATED, json!({ "slot": slot })),
        Err(answer) => answer,
    }
}

fn try_add(
    machine: &MachineHandle,
    kind: DeviceKind,
    body: Body,
    completion: &Completion,
) -> Result<usize, Answer> {
    let bad = |text: String| error(StatusCode::BAD_REQUEST, text);
    let cannot = |why: &dyn std::error::Error| error(StatusCode::CONFLICT, error_chain(why));
    let options = options(&body.bytes).map_err(bad)?;
    let room_for = |name: &str| machine.devices.room_for(kind, name).map_err(refusal);
    let device: Box<dyn VirtioDevice> = if kind == DeviceKind::Disk {
        let config: DiskConfig = options.parse().map_err(|why| bad(error_chain(&why)))?;
        room_for(&config.path.display().to_string())?;
        let disk = match body.descriptors.into_iter().next() {
            Some(given) => Block::over(given, &config, &machine.gate),
            None => Block::open(&config, &machine.gate),
        };
        Box::new(disk.map_err(|why| cannot(&why))?)
    } else {
        let mut config: NetDeviceConfig = options.parse().map_err(|why| bad(error_chain(&why)))?;
        if let NetDeviceConfig::Socket(config) = &mut config {
            config.timeout = Some(BACK_END_LIMIT);
        }
        room_for(&config.name())?;
        net::open(&config, &machine.gate).map_err(|why| cannot(&why))?
    };
    // The rest is fast.
    if !completion.finish() {
        let text = format!("{}: opened too late, and closed", device.label());
        return Err(error(StatusCode::GATEWAY_TIMEOUT, text));
    }
    machine.devices.plug(device).map_err(refusal)
}

/// `{"options": "tap=tap1,mac=52:54:00:00:00:02"}`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    options: String,
}

fn options(body: &[u8]) -> Result<String, String> {
    const EXPECTED: &str =
        r#"expected an object like {"options": "tap=tap1"}, with the options of --net or --disk"#;
    // Parsed to its end before its content is checked, so that invalid JSON is reported as such.
    let body: Value = serde_json::from_slice(body).map_err(|error| format!("{EXPECTED}: {error}"))?;
    // Only from an object: serde would accept a list of the fields as well.
    let wanted = body.as_object().and_then(|object| Wanted::deserialize(object).ok());
    wanted.map(|wanted| wanted.options).ok_or_else(|| EXPECTED.to_owned())
}

/// Asks the guest to release a device, and waits for it.
pub(super) fn remove(machine: &MachineHandle, kind: DeviceKind, name: &str) -> Answer {
    match machine.devices.remove(kind, name, GUEST_LIMIT) {
        Ok(()) => (StatusCode::OK, json!({})),
        Err(why) => refusal(why),
    }
}

fn refusal(why: PlugError) -> Answer {
    let code = match &why {
        PlugError::Mmio => StatusCode::NOT_IMPLEMENTED,
        PlugError::Taken { .. } | PlugError::Slot(_) => StatusCode::CONFLICT,
        PlugError::Absent { .. } => StatusCode::NOT_FOUND,
        PlugError::Late { .. } => StatusCode::GATEWAY_TIMEOUT,
        PlugError::Ended => StatusCode::SERVICE_UNAVAILABLE,
    };
    error(code, error_chain(&why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_an_object_of_its_options_alone() {
        const EXPECTED: &str =
            r#"expected an object like {"options": "tap=tap1"}, with the options of --net or --disk"#;
        assert_eq!(options(br#" {"options": "tap=t,mtu=1400"} "#).unwrap(), "tap=t,mtu=1400");
        // The last of two equal keys counts, as everywhere in JSON.
        assert_eq!(options(br#"{"options": 5, "options": "tap=t"}"#).unwrap(), "tap=t");
        for body in [
            "{}",
            "[]",
            r#"["tap=t"]"#,
            "null",
            r#""tap=t""#,
            r#"{"options": 5}"#,
            r#"{"options": null}"#,
            r#"{"options": ["tap=t"]}"#,
            r#"{"Options": "tap=t"}"#,
            r#"{"options": "tap=t", "more": 1}"#,
        ] {
            assert_eq!(options(body.as_bytes()).unwrap_err(), EXPECTED, "{body}");
        }
        // Invalid JSON is reported with its position, before any other error.
        for (body, place) in [
            ("", "EOF while parsing a value at line 1 column 0"),
            (r#"{"options": 5, x"#, "key must be a string at line 1 column 16"),
            (r#"{"options": "tap=t"} x"#, "trailing characters at line 1 column 22"),
        ] {
            assert_eq!(options(body.as_bytes()).unwrap_err(), format!("{EXPECTED}: {place}"), "{body}");
        }
    }
}
