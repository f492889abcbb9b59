//! The kernel command line, completed with defaults.

use crate::config::serial::SerialConfig;

/// Prepends defaults for the parameters that the user left out.
pub fn complete_cmdline(user: &str, serial: &SerialConfig, rootfs_read_only: Option<bool>) -> String {
    let has = |key: &str| user.split_whitespace().any(|word| word.starts_with(key));
    let mut words = Vec::new();
    if *serial != SerialConfig::None && !has("console=") {
        words.push("console=ttyS0");
    }
    if !has("reboot=") {
        words.push("reboot=k");
    }
    if !has("panic=") {
        words.push("panic=-1");
    }
    if let Some(read_only) = rootfs_read_only
        && !has("root=")
    {
        words.extend(["root=/dev/vda", if read_only { "ro" } else { "rw" }]);
    }
    words.extend(Some(user.trim()).filter(|user| !user.is_empty()));
    words.join(" ")
}
