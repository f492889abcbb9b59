//! All of volt-netd's roles. The build script reads this file and those beside it as well.

use volt_sandbox::table::Table;

use super::beside::{OPENER, SUPERVISOR};
use super::lists::{CONTROL, DESCRIPTORS, FRAMES, LOG, MAIN, METRICS};

/// For `--print-sandbox`, and for the filters.
pub(crate) const TABLE: Table =
    Table(&[&MAIN, &FRAMES, &CONTROL, &DESCRIPTORS, &METRICS, &LOG, &SUPERVISOR, &OPENER]);
