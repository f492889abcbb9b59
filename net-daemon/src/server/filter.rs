//! The filter of the guest's frames: its part of the status, and requests of `volt-netd ctl policy`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use log::info;
use serde_json::{Value, json};
use volt_filter::rules::{Policy, Question, QuestionError};
use volt_net::config::Mac;
use volt_net::filter::DeviceFilter;
use volt_virtio::error_chain;

use super::{Server, ServerError};
use crate::control::PolicyRequest;
use crate::filter::listed::{Listed, direction};
use crate::filter::{describe, mode};
use crate::status;

/// The answer of a daemon without a filter.
const NO_FILTER: &str = "it was started without --guard or --policy, and passes all frames of its guest";

impl Server {
    /// Sets the filter. Call before the daemon serves.
    pub(crate) fn set_filter(&mut self, filter: Option<DeviceFilter>) {
        self.device.set_filter(filter);
    }

    /// Carries out a request about the policy. Returns the answer, or the reason for a refusal.
    pub(super) fn policy(&mut self, request: PolicyRequest) -> Result<Result<Value, String>, ServerError> {
        let Some(filter) = self.device.filter() else { return Ok(Err(NO_FILTER.to_owned())) };
        Ok(match request {
            PolicyRequest::Set(text) => match filter.with_policy(Some(text)) {
                Ok(next) => Ok(self.change_policy(next)?.into()),
                Err(error) => Err(error_chain(&error)),
            },
            PolicyRequest::Show => policy(filter).map(|policy| policy.text().into()),
            PolicyRequest::Test(question) => policy(filter).and_then(|policy| test(policy, &question)),
            PolicyRequest::Log => {
                Ok(json!(filter.log().entries().iter().map(Listed::new).collect::<Vec<_>>()))
            }
        })
    }

    /// Puts another policy in force. It is committed for the next process before the client is told.
    fn change_policy(&mut self, next: DeviceFilter) -> Result<String, ServerError> {
        let said = describe(&next, None);
        self.change_device(|device| device.set_filter(Some(next)))?;
        let interface = self.device.port_name();
        info!(event = "policy_changed", interface; "{interface}: policy changed: {said}");
        Ok(said)
    }

    /// Returns the filter's part of the status.
    pub(super) fn filter_status(&self) -> Option<status::Filter> {
        let device_filter = self.device.filter()?;
        let filter = device_filter.filter();
        let setup = filter.setup();
        let mut refused: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
        for (way, reason, frames) in filter.refused().filter(|(_, _, frames)| *frames > 0) {
            refused.entry(direction(way).to_owned()).or_default().insert(reason.name().to_owned(), frames);
        }
        Some(status::Filter {
            mac: Mac(setup.mac).to_string(),
            addresses: device_filter.addresses().iter().map(IpAddr::to_string).collect(),
            learns: setup.learn.is_some(),
            policy: filter.policy().map(|policy| mode(policy.mode()).to_owned()),
            flows: filter.flows() as u64,
            flows_max: setup.flows.into(),
            refused,
        })
    }
}

fn policy(filter: &DeviceFilter) -> Result<&Policy, String> {
    let none = "it guards its guest, but has no policy: see 'volt-netd ctl policy set'";
    filter.filter().policy().ok_or_else(|| none.to_owned())
}

/// Explains what the policy in force says about a flow.
fn test(policy: &Policy, question: &str) -> Result<Value, String> {
    let question: Question = question.parse().map_err(|error: QuestionError| error.to_string())?;
    let explanation = policy.explain(&question);
    Ok(json!({ "allowed": explanation.answer.is_ok(), "explanation": explanation.to_string() }))
}
