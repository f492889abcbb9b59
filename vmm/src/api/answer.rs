//! The answer to a request: a status and a JSON object.

use serde_json::{Value, json};
use volt_http::StatusCode;

/// Status and body of an answer.
pub(super) type Answer = (StatusCode, Value);

/// Returns the answer to a failed request. `text` names the error and the remedy.
pub(super) fn error(code: StatusCode, text: String) -> Answer {
    (code, json!({ "error": text }))
}
