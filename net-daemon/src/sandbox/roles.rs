//! All of volt-netd's roles. The build script also compiles this file and those beside it.

use volt_sandbox::table::Table;

use super::beside::{OPENER, SUPERVISOR};
use super::lists::{CONTROL, DESCRIPTORS, FRAMES, LOG, MAIN, METRICS};

/// The table for `--print-sandbox` and the filters.
pub(crate) const TABLE: Table =
    Table(&[&MAIN, &FRAMES, &CONTROL, &DESCRIPTORS, &METRICS, &LOG, &SUPERVISOR, &OPENER]);
