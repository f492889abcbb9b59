//! `volt-netd check`: checks this host.

use std::process::ExitCode;

use volt_program::check::Findings;
use volt_program::output;

use crate::cli::TableForm;
use crate::launch::AnyError;

/// Checks the host, and TAP interface `tap` if given, and prints the findings.
pub(crate) fn run(tap: Option<&str>, form: TableForm) -> Result<ExitCode, AnyError> {
    let mut findings = Findings::default();
    findings.note_sandbox();
    findings.note_tap(tap);
    match form {
        TableForm::Text => output::print(&findings)?,
        TableForm::Json => output::print(&format_args!("{:#}", findings.json()))?,
    }
    Ok(if findings.suffice() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
