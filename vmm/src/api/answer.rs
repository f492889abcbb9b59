//! What every request is answered with: a status and a JSON object.

use serde_json::{Value, json};
use volt_http::StatusCode;

/// A status, and the body.
pub(super) type Answer = (StatusCode, Value);

/// The answer to a request that comes to nothing: `text` says what was wrong and what to do.
pub(super) fn error(code: StatusCode, text: String) -> Answer {
    (code, json!({ "error": text }))
}
