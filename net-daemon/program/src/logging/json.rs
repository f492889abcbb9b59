//! JSON lines, one object per line.
//!
//! `time` (RFC 3339, UTC), `level`, `event` and `message` come first, then the line's values.

use std::fmt::Display;

use jiff::Timestamp;
use log::kv::{Error, Key, Source, Value, VisitSource};
use log::{Level, Record};
use serde::ser::{Serialize, SerializeMap, Serializer};

/// Key of the event name.
const EVENT: &str = "event";

/// Formats a record. Debug lines have no event.
pub(super) fn of(record: &Record<'_>) -> Vec<u8> {
    let values = record.key_values();
    let event = values.get(Key::from_str(EVENT));
    let event = event.as_ref().and_then(Value::to_borrowed_str);
    line(record.level(), event, record.args(), &values)
}

/// Formats a line of these parts.
pub(super) fn line(level: Level, event: Option<&str>, message: &dyn Display, values: &dyn Source) -> Vec<u8> {
    let mut line = Vec::with_capacity(256);
    // Cannot fail: writing to a vector does not, and all keys are strings.
    let _ = write(&mut line, level, event, message, values);
    line.push(b'\n');
    line
}

fn write(
    line: &mut Vec<u8>,
    level: Level,
    event: Option<&str>,
    message: &dyn Display,
    values: &dyn Source,
) -> serde_json::Result<()> {
    let mut json = serde_json::Serializer::new(line);
    let mut fields = json.serialize_map(None)?;
    fields.serialize_entry("time", &format_args!("{:.3}", Timestamp::now()))?;
    fields.serialize_entry("level", &level.as_str().to_ascii_lowercase())?;
    if let Some(event) = event {
        fields.serialize_entry(EVENT, event)?;
    }
    fields.serialize_entry("message", &format_args!("{message}"))?;
    let _ = values.visit(&mut Fields(&mut fields));
    fields.end()
}

/// Writes the values of a line.
struct Fields<'a, M>(&'a mut M);

impl<'kvs, M: SerializeMap> VisitSource<'kvs> for Fields<'_, M> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        if key.as_str() == EVENT {
            return Ok(());
        }
        self.0.serialize_entry(key.as_str(), &Field(value)).map_err(|_| Error::msg("no JSON"))
    }
}

struct Field<'a>(Value<'a>);

impl Serialize for Field<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Field(value) = self;
        if let Some(value) = value.to_u64() {
            to.serialize_u64(value)
        } else if let Some(value) = value.to_i64() {
            to.serialize_i64(value)
        } else if let Some(value) = value.to_f64() {
            to.serialize_f64(value)
        } else if let Some(value) = value.to_bool() {
            to.serialize_bool(value)
        } else {
            to.collect_str(value)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks a line's time and removes it.
    fn untimed(line: Vec<u8>) -> String {
        let line = String::from_utf8(line).unwrap();
        let (time, rest) = line.strip_prefix(r#"{"time":""#).unwrap().split_once(r#"","#).unwrap();
        assert_eq!(time.len(), "2026-01-01T00:00:00.000Z".len(), "milliseconds, UTC: {time}");
        time.parse::<Timestamp>().unwrap();
        rest.to_owned()
    }

    #[test]
    fn a_record_is_one_line_whatever_is_in_it() {
        let values = [("event", Value::from("link_changed")), ("interface", Value::from("t\"0\n"))];
        let more = [("vring", Value::from(3)), ("change", Value::from(-1)), ("up", Value::from(true))];
        let values: Vec<_> = values.into_iter().chain(more).collect();
        let args = format_args!("a \"line\"\nof two \u{1b}[31m");
        let record = Record::builder().level(Level::Warn).args(args).key_values(&values).build();
        assert_eq!(
            untimed(of(&record)),
            "\"level\":\"warn\",\"event\":\"link_changed\",\
             \"message\":\"a \\\"line\\\"\\nof two \\u001b[31m\",\"interface\":\"t\\\"0\\n\",\
             \"vring\":3,\"change\":-1,\"up\":true}\n"
        );
    }

    #[test]
    fn a_line_without_event_has_none() {
        let record = Record::builder().level(Level::Debug).args(format_args!("message 3")).build();
        assert_eq!(untimed(of(&record)), "\"level\":\"debug\",\"message\":\"message 3\"}\n");
    }
}
