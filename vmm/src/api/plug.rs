//! Devices that come and go while the guest runs.

use std::time::Duration;

use serde_json::{Value, json};
use volt_http::StatusCode;

use crate::api::answer::{Answer, error};
use crate::api::completion::Completion;
use crate::config::{DiskConfig, NetDeviceConfig};
use crate::faults::chain;
use crate::machine::devices::PlugError;
use crate::machine::handle::MachineHandle;
use crate::virtio::blk::Block;
use crate::virtio::handle::DeviceKind;
use crate::virtio::{VirtioDevice, net};

/// How long a back-end may take to listen: with what follows, less than a client waits.
const BACK_END_LIMIT: Duration = Duration::from_secs(2);
/// How long a guest may take to give a device back before the client is told that it has not yet.
const GUEST_LIMIT: Duration = Duration::from_secs(8);

/// Opens the device that `body` describes and plugs it.
pub(super) fn add(machine: &MachineHandle, kind: DeviceKind, body: &[u8], completion: &Completion) -> Answer {
    match try_add(machine, kind, body, completion) {
        Ok(slot) => (StatusCode::CREATED, json!({ "slot": slot })),
        Err(answer) => answer,
    }
}

fn try_add(
    machine: &MachineHandle,
    kind: DeviceKind,
    body: &[u8],
    completion: &Completion,
) -> Result<usize, Answer> {
    let bad = |text: String| error(StatusCode::BAD_REQUEST, text);
    let cannot = |why: &dyn std::error::Error| error(StatusCode::CONFLICT, chain(why).to_string());
    let options = options(body).map_err(bad)?;
    let room_for = |name: &str| machine.devices.room_for(kind, name).map_err(refusal);
    let device: Box<dyn VirtioDevice> = if kind == DeviceKind::Disk {
        let config: DiskConfig = options.parse().map_err(|why| bad(chain(&why).to_string()))?;
        room_for(&config.path.display().to_string())?;
        Box::new(Block::open(&config, &machine.gate).map_err(|why| cannot(&why))?)
    } else {
        let mut config: NetDeviceConfig = options.parse().map_err(|why| bad(chain(&why).to_string()))?;
        if let NetDeviceConfig::Socket(config) = &mut config {
            config.timeout = Some(BACK_END_LIMIT);
        }
        room_for(&config.name())?;
        net::open(&config, &machine.gate).map_err(|why| cannot(&why))?
    };
    // From here on it does not take long.
    if !completion.finish() {
        let text = format!("{}: opened too late, and closed again", device.label());
        return Err(error(StatusCode::GATEWAY_TIMEOUT, text));
    }
    machine.devices.plug(device).map_err(refusal)
}

/// `{"options": "tap=tap1,mac=52:54:00:00:00:02"}`
fn options(body: &[u8]) -> Result<String, String> {
    const EXPECTED: &str =
        r#"expected an object like {"options": "tap=tap1"}, with what --net or --disk would have"#;
    let object: Value = serde_json::from_slice(body).map_err(|error| format!("{EXPECTED}: {error}"))?;
    match object.as_object().map(|object| (object.len(), object.get("options"))) {
        Some((1, Some(Value::String(options)))) => Ok(options.clone()),
        _ => Err(EXPECTED.to_owned()),
    }
}

/// Asks the guest for a device and waits for it.
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
    error(code, chain(&why).to_string())
}
