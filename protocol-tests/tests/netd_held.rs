//! volt-netd and descriptors that block their users: only the front-end's own connection ends, and the daemon
//! serves the next one.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use protocol_tests::frontend::{mem_table, single_region};
use protocol_tests::memory::{GuestMemory, RegionSpec};
use protocol_tests::rig::{LIMIT, Rig};
use protocol_tests::session::Setup;
use protocol_tests::silent_fs::SilentFile;
use protocol_tests::wire::{longs, request};

/// A request with a descriptor.
type Abuse = (&'static str, u32, Vec<u8>);

/// A file on a FUSE file system that no longer answers, in every place for a descriptor: as memory, as a
/// kick, and with a request that takes none, which closes it. Two seconds later the connection has ended and
/// the next front-end is served.
#[test]
fn a_silent_file_system_holds_nobody() {
    for arguments in [&[][..], &["--supervise"]] {
        let Some(mut rig) = Rig::new("a_silent_file_system_holds_nobody", arguments) else { return };
        let before = rig.usage();
        let silent = match SilentFile::new(rig.dir.path()) {
            Ok(silent) => silent,
            Err(error) => return eprintln!("SKIP a_silent_file_system_holds_nobody: FUSE: {error}"),
        };
        let region = RegionSpec::linear(0, 16 << 20, 0);
        let abuses: [Abuse; 4] = [
            ("memory table", request::SET_MEM_TABLE, mem_table(&[region])),
            ("region", request::ADD_MEM_REG, single_region(&region)),
            ("kick", request::SET_VRING_KICK, longs(&[0])),
            ("surplus", request::SET_OWNER, Vec::new()),
        ];
        for (what, request, body) in abuses {
            abuse(&rig, what, request, &body, silent.file.as_fd());
            let mut session = rig.session(&Setup::default());
            rig.both_ways(&mut session, 5);
        }
        rig.logged(&["WARN", "descriptor", "refused"]);
        // When the file system ends, the threads blocked on its files continue.
        drop(silent);
        rig.well(&before);
    }
}

fn abuse(rig: &Rig, what: &str, request: u32, body: &[u8], fd: BorrowedFd<'_>) {
    let frontend = rig.connect();
    let start = Instant::now();
    frontend.tell(request, body, &[fd]).expect("sent");
    assert!(frontend.get_features().is_err(), "{what}: the connection ends");
    assert!(start.elapsed() < LIMIT, "{what}: {:?}", start.elapsed());
}

/// Memory in a file of an ordinary file system, as with QEMU's memory-backend-file, works like other memory.
#[test]
fn memory_may_be_an_ordinary_file() {
    let Some(rig) = Rig::new("memory_may_be_an_ordinary_file", &[]) else { return };
    let session = rig.session(&Setup::default());
    let file = tempfile::tempfile_in("/var/tmp").expect("a file");
    file.set_len(16 << 20).expect("its size");
    let region = RegionSpec::linear(0x1000_0000, 16 << 20, 0);
    let memory = GuestMemory::map(vec![(region, file.into())]).expect("mapped");
    session.frontend.set_mem_table(&memory).expect("taken");
    rig.logged(&["guest memory: 16 MiB"]);
}
