//! A further initramfs archive: programs and files that one test adds to those of every guest.
//!
//! The kernel unpacks archives that follow one another in one file. Programs are the host's, with the shared
//! libraries that they need, as in `scripts/build-guest`.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// The archive's files.
pub struct Archive {
    root: TempDir,
}

impl Archive {
    /// Returns an empty one.
    ///
    /// # Panics
    /// If there is no room for it.
    pub fn new() -> Archive {
        Archive { root: tempfile::tempdir().expect("a directory") }
    }

    /// Adds a file with this text. Scripts can be run.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn file(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.place(path);
        fs::write(&path, content).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode");
    }

    /// Adds an empty directory.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn directory(&self, path: &str) {
        fs::create_dir_all(self.root.path().join(path)).expect("a directory");
    }

    /// Adds a file of the host at the same path, with the libraries that it needs.
    ///
    /// # Panics
    /// If it is missing.
    #[track_caller]
    pub fn host(&self, path: &Path) {
        self.copy(path, path);
        for library in libraries(path) {
            self.copy(&library, &library);
        }
    }

    /// Adds a program as `/usr/bin/NAME`, with the libraries that it needs.
    ///
    /// # Panics
    /// If it is missing.
    #[track_caller]
    pub fn program(&self, path: &Path) {
        let name = path.file_name().unwrap_or_default();
        self.copy(path, &Path::new("/usr/bin").join(name));
        for library in libraries(path) {
            self.copy(&library, &library);
        }
    }

    #[track_caller]
    fn copy(&self, from: &Path, to: &Path) {
        let to = self.place(to.to_str().unwrap_or_default());
        fs::copy(from, to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    }

    /// Returns the place of a file, whose directory exists.
    fn place(&self, path: &str) -> PathBuf {
        let path = self.root.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap_or(&path)).expect("a directory");
        path
    }

    /// Writes an initramfs to `target`: that of `base`, then these files.
    ///
    /// # Panics
    /// If a file cannot be read or written, or there is no `cpio`.
    pub fn pack(&self, base: &Path, target: &Path) {
        let mut image = fs::read(base).expect("the guest's initramfs");
        // An archive begins at a multiple of four bytes.
        image.resize(image.len().next_multiple_of(4), 0);
        let mut file = fs::File::create(target).expect("a file");
        file.write_all(&image).expect("written");
        let pack = "find . | cpio -o -H newc -R 0:0 --quiet";
        let mut shell = Command::new("sh");
        let status =
            shell.args(["-c", pack]).current_dir(self.root.path()).stdout(Stdio::from(file)).status();
        assert!(status.is_ok_and(|status| status.success()), "{pack}");
    }
}

impl Default for Archive {
    fn default() -> Archive {
        Archive::new()
    }
}

/// Returns the shared libraries of a program, and its loader.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().expect("ldd");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}
