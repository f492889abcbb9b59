//! Web servers for a guest: a mirror with one Debian package, by HTTP, and a server with TLS. The guest gets
//! the host's `apt-get` with its methods, `dpkg` and `openssl`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::archive::Archive;
use super::process::Process;
use super::routed::shell;
use super::{PATIENCE, guest_file};

/// The package, which installs [`INSTALLED`].
pub const PACKAGE: &str = "volt-test";
/// Random data in the package.
pub const INSTALLED: &str = "/usr/share/volt-test/data";
/// The same data by HTTP and TLS.
pub const DATA: &str = "data";

/// Builds the package, its index and a certificate, in the folder `files` and beside it.
const BUILD: &str = "
mkdir -p package/DEBIAN package/usr/share/volt-test files
head -c 2000000 /dev/urandom >files/data
cp files/data package/usr/share/volt-test/data
cat >package/DEBIAN/control <<END
Package: volt-test
Version: 1
Architecture: all
Maintainer: volt <volt@example.org>
Description: random data
END
dpkg-deb --root-owner-group -Znone -b package files/volt-test.deb
{
    dpkg-deb -f files/volt-test.deb
    echo Filename: ./volt-test.deb
    echo Size: $(stat -c %s files/volt-test.deb)
    echo SHA256: $(sha256sum <files/volt-test.deb | cut -c 1-64)
} >files/Packages
openssl req -x509 -newkey rsa:2048 -nodes -keyout key -out certificate -subj /CN=mirror \
    -addext subjectAltName=IP:198.51.100.1
";

/// Options of the guest's apt-get. It runs as root; the index is small, so pipelining shows nothing.
const APT: &str = "
APT::Sandbox::User \"root\";
APT::Architecture \"amd64\";
APT::Architectures \"amd64\";
Acquire::Languages \"none\";
DPkg::Options { \"--force-bad-path\"; };
";

/// Directories that apt-get and dpkg expect.
const DIRECTORIES: [&str; 8] = [
    "etc/apt/apt.conf.d",
    "etc/apt/preferences.d",
    "var/cache/apt/archives/partial",
    "var/lib/apt/lists/partial",
    "var/lib/dpkg/info",
    "var/lib/dpkg/triggers",
    "var/lib/dpkg/updates",
    "var/log/apt",
];

/// The servers, until dropped.
pub struct Mirror {
    /// The SHA-256 of the data, in hexadecimal.
    pub sha256: String,
    certificate: PathBuf,
    _servers: [Process; 2],
}

impl Mirror {
    /// Starts the servers on the ports 80 and 443 of the caller's namespace, with files in `directory`.
    ///
    /// # Panics
    /// If a program is missing or a server does not start.
    #[track_caller]
    pub fn start(directory: &Path) -> Mirror {
        shell(Command::new("sh").current_dir(directory), BUILD);
        let files = directory.join("files");
        let data = fs::read(files.join(DATA)).expect("the data");
        let (_, sha256) = super::traffic::digest(&mut data.as_slice());
        let mut web = Command::new(guest_file("busybox/bin/busybox"));
        let web = Process::start("httpd", web.args(["httpd", "-f", "-p", "80", "-h"]).arg(&files));
        let certificate = directory.join("certificate");
        let mut tls = Command::new("openssl");
        tls.args(["s_server", "-accept", "443", "-HTTP", "-key"]).arg(directory.join("key"));
        tls.arg("-cert").arg(&certificate).current_dir(&files);
        let mut tls = Process::start("openssl", &mut tls);
        tls.wait_for("ACCEPT", PATIENCE);
        Mirror { sha256, certificate, _servers: [web, tls] }
    }

    /// Adds the host's apt-get, dpkg and openssl to a guest, with the mirror at `address` as apt's only
    /// source and the certificate as `/certificate`.
    ///
    /// # Panics
    /// If one of them is missing.
    #[track_caller]
    pub fn add_clients(&self, archive: &Archive, address: &str) {
        for name in ["apt-get", "apt-config", "dpkg", "dpkg-deb", "dpkg-split", "tar", "openssl"] {
            archive.program(&Path::new("/usr/bin").join(name));
        }
        for name in ["http", "store", "copy", "file"] {
            archive.host(&Path::new("/usr/lib/apt/methods").join(name));
        }
        for name in ["cputable", "ostable", "tupletable", "abitable"] {
            archive.host(&Path::new("/usr/share/dpkg").join(name));
        }
        DIRECTORIES.into_iter().for_each(|path| archive.directory(path));
        archive.file("/etc/apt/apt.conf", APT);
        archive.file("/etc/apt/sources.list", format!("deb [trusted=yes] http://{address}/ ./\n"));
        archive.file("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n");
        archive.file("/etc/group", "root:x:0:\n");
        archive.file("/var/lib/dpkg/status", "");
        archive.file("/certificate", fs::read(&self.certificate).expect("the certificate"));
    }
}
