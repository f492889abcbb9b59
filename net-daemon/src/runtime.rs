//! The default path of a control socket: named after the interface, in a directory where `volt-netd ctl`
//! finds it.
//!
//! [`launch`](crate::launch) creates the socket, [`ctl`](crate::ctl) searches [`Runtime::places`].
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, Permissions, read_dir, set_permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

/// Directory of root's daemons (`hier(7)`).
const OF_ROOT: &str = "/run/volt";
/// File name extension of a control socket.
const ENDING: &str = "ctl";

/// The parts of a process's environment that determine the directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Runtime {
    root: bool,
    /// The service manager's directories, separated by colons: `RuntimeDirectory=` of `systemd.exec(5)`.
    service: Option<OsString>,
    /// The user's directory: `XDG_RUNTIME_DIR` of the XDG Base Directory Specification.
    session: Option<OsString>,
}

impl Runtime {
    /// Reads this process's environment.
    pub(crate) fn of_this_process() -> Runtime {
        let variable = |name| std::env::var_os(name);
        Runtime {
            root: geteuid().is_root(),
            service: variable("RUNTIME_DIRECTORY"),
            session: variable("XDG_RUNTIME_DIR"),
        }
    }

    /// Returns a daemon's directory, and the permissions to create it with; `None` if the service manager
    /// creates it.
    fn directory(&self) -> Option<(PathBuf, Option<u32>)> {
        if let Some(given) = self.given().next() {
            Some((given, None))
        } else if self.root {
            Some((OF_ROOT.into(), Some(0o755)))
        } else {
            Some((self.of_session()?, Some(0o700)))
        }
    }

    /// Returns the path of the control socket of an interface's daemon; `None` if the user has no directory.
    /// An interface's name has no slash (`dev_valid_name` of Linux); for one with a slash, the result is
    /// `None`.
    pub(crate) fn control(&self, interface: &str) -> Option<PathBuf> {
        let (directory, _) = self.directory()?;
        let name = format!("{interface}.{ENDING}");
        (Path::new(&name).file_name() == Some(OsStr::new(&name))).then(|| directory.join(name))
    }

    /// Creates the directory, unless it exists.
    pub(crate) fn make_directory(&self) -> io::Result<()> {
        let Some((directory, Some(mode))) = self.directory() else { return Ok(()) };
        match DirBuilder::new().mode(mode).create(&directory) {
            // Regardless of the umask.
            Ok(()) => set_permissions(&directory, Permissions::from_mode(mode)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Returns the directories of control sockets. Units use a directory below root's.
    pub(crate) fn places(&self) -> Vec<PathBuf> {
        let of_root = PathBuf::from(OF_ROOT);
        let mut below: Vec<_> = entries(&of_root).filter(|path| path.is_dir()).collect();
        below.sort();
        let mut places = vec![of_root];
        places.extend(below);
        places.extend(self.given().chain(self.of_session()).filter(|place| !place.starts_with(OF_ROOT)));
        places
    }

    /// Returns the paths in these directories that look like control sockets, sorted by name.
    pub(crate) fn sockets(&self) -> Vec<PathBuf> {
        let in_place = |place: &PathBuf| {
            let ending = |path: &PathBuf| path.extension() == Some(OsStr::new(ENDING));
            let mut found: Vec<_> = entries(place).filter(ending).collect();
            found.sort();
            found
        };
        self.places().iter().flat_map(in_place).collect()
    }

    fn given(&self) -> impl Iterator<Item = PathBuf> {
        self.service.iter().flat_map(std::env::split_paths).filter(|path| path.is_absolute())
    }

    fn of_session(&self) -> Option<PathBuf> {
        let session = self.session.as_ref().map(Path::new).filter(|path| path.is_absolute())?;
        Some(session.join("volt"))
    }
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> {
    read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime(root: bool, service: &str, session: &str) -> Runtime {
        let some = |text: &str| (!text.is_empty()).then(|| text.into());
        Runtime { root, service: some(service), session: some(session) }
    }

    #[test]
    fn a_daemon_has_one_place() {
        let control = |root, service, session| {
            runtime(root, service, session).control("tap0").map(|path| path.display().to_string())
        };
        for (root, service, session, place) in [
            (true, "", "", Some("/run/volt/tap0.ctl")),
            (true, "", "/run/user/0", Some("/run/volt/tap0.ctl")),
            (true, "/run/volt/tap0:/run/other", "", Some("/run/volt/tap0/tap0.ctl")),
            (false, "/run/user/7/unit", "/run/user/7", Some("/run/user/7/unit/tap0.ctl")),
            (false, "", "/run/user/7", Some("/run/user/7/volt/tap0.ctl")),
            (false, "relative", "also/relative", None),
            (false, "", "", None),
        ] {
            assert_eq!(control(root, service, session).as_deref(), place, "{root} {service} {session}");
        }
    }

    #[test]
    fn an_interface_cannot_lead_out() {
        let control = |name| runtime(true, "", "").control(name);
        for odd in ["../tap0", "a/b", "/etc/passwd", "a/"] {
            assert_eq!(control(odd), None, "{odd}");
        }
        // The kernel allows these names, which are single path components.
        for name in ["tap0", "...", "a b", "-x", "ä"] {
            let parent = control(name).and_then(|path| path.parent().map(Path::to_owned));
            assert_eq!(parent, Some("/run/volt".into()), "{name}");
        }
    }

    #[test]
    fn the_directory_is_made_for_its_user() {
        let dir = tempfile::tempdir().unwrap();
        let session = runtime(false, "", dir.path().to_str().unwrap());
        for _ in 0..2 {
            session.make_directory().unwrap();
        }
        let mode = dir.path().join("volt").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        // A service manager creates its own directory.
        let missing = dir.path().join("missing");
        runtime(true, missing.to_str().unwrap(), "").make_directory().unwrap();
        assert!(!missing.exists());
    }
}
