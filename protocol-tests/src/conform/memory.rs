//! Memory tables: valid regions of every number, order and offset, and invalid ones.

use std::os::fd::BorrowedFd;

use super::bench::{Bench, LIMIT, PLAIN, QUIET, refused};
use super::{Finding, checks, ensure};
use crate::frontend::{mem_table, single_region};
use crate::memory::{GuestMemory, RegionSpec};
use crate::ring::Part;
use crate::session::{Session, Setup};
use crate::wire::{protocol, request, request_name, words};

type Result = std::result::Result<(), Finding>;

checks! {
    "memory/eight-regions", Must, Completion, "vhost-user, Multiple Memory regions description (up to 8)",
        "Eight adjacent regions work, with rings and buffers in all of them.",
        |b| {
            let mut pieces = [(0x2_0000, 0); 8];
            pieces[0].0 = 0x1_8000;
            regions(b, RegionSpec::adjoining(0x10_0000, &pieces))
        };
    "memory/offset", Must, Completion, "vhost-user, Memory region description (mmap offset)",
        "A region begins in its file at its offset.",
        |b| regions(b, vec![RegionSpec::linear(0x10_0000, 8 << 20, 0x3000)]);
    "memory/offset-odd", Robust, Completion, "vhost-user, Memory region description (mmap offset)",
        "The offset of a region need not be page-aligned.",
        |b| regions(b, vec![RegionSpec::linear(0x10_0000, 8 << 20, 0x1230)]);
    "memory/user-addresses", Must, Completion, "vhost-user, SET_VRING_ADDR (user addresses)",
        "Ring addresses are the front-end's, descriptor addresses the guest's.", user_addresses;
    "memory/unsorted", Must, Completion, "vhost-user, Multiple Memory regions description",
        "Regions need not be sorted by address.", |b| {
            let mut specs = RegionSpec::adjoining(0x10_0000, &[(3 << 20, 0), (5 << 20, 0x1000)]);
            specs.reverse();
            regions(b, specs)
        };
    "memory/across-border", Must, Completion, "virtio 1.2, 2.7.5 (buffers are guest-physical ranges)",
        "A frame may cross from one region into another with its own file.", |b| regions(b,
            RegionSpec::adjoining(0x10_0000, &[(0x1_8000, 0), (0x40_0000, 0x1000), (0x40_0000, 0)]));
    "memory/ring-across-border", Robust, Completion,
        "vhost-user, Memory region description (does not say); virtio 1.2, 2.7",
        "A ring may cross from one region into another with its own file.", rings_across;
    "memory/receive-across-border", Must, Frames, "virtio 1.2, 2.7.5 (buffers are guest-physical ranges)",
        "A receive buffer may cross from one region into another with its own file.", receive_across;
    "memory/add-remove", Must, Completion, "vhost-user, ADD_MEM_REG and REM_MEM_REG",
        "An added region works, and can be removed while the others stay in use.", add_remove;
    "memory/all-slots", Must, Completion, "vhost-user, GET_MAX_MEM_SLOTS and ADD_MEM_REG",
        "All memory slots that the back-end reports can be used.", all_slots;
    "memory/removed", Robust, Completion, "vhost-user, REM_MEM_REG",
        "A frame in a removed region does no harm.", removed;
    "memory/huge", Robust, Completion, "vhost-user, Memory region description (64-bit size)",
        "A region of 1 TiB works, with rings at its beginning and a frame at its end.", huge;
    "memory/replaced", Robust, Completion, "vhost-user, SET_MEM_TABLE",
        "Sending the same table again disturbs no running ring.", replaced;
    "memory/room-for-two", Robust, Completion, "UML up to 7.2 sends it",
        "SET_MEM_TABLE with room for two regions and a count of one is accepted.", room_for_two;
    "memory/file-short", Robust, Control, "robustness (SIGBUS)", "A region longer than its file is refused.",
        |b| table(b, &[RegionSpec::linear(0, 0x11000, 0)], 1);
    "memory/offset-beyond", Robust, Control, "robustness (SIGBUS)", "An offset beyond the file is refused.",
        |b| table(b, &[RegionSpec::linear(0, 0x1000, 1 << 40)], 1);
    "memory/size-zero", Robust, Control, "vhost-user, Memory region description",
        "An empty region is refused.", |b| table(b, &[RegionSpec::linear(0, 0, 0)], 1);
    "memory/address-wrap", Robust, Control, "vhost-user, Memory region description",
        "A region that wraps around the address space is refused.",
        |b| table(b, &[RegionSpec { guest: u64::MAX - 0xfff, size: 0x2000, user: 0, offset: 0 }], 1);
    "memory/overlap", Robust, Control, "vhost-user, Multiple Memory regions description",
        "Regions that overlap are refused.",
        |b| table(b, &[RegionSpec::linear(0, 0x2000, 0), RegionSpec::linear(0x1000, 0x1000, 0)], 2);
    "memory/fd-missing", Robust, Control, "vhost-user, SET_MEM_TABLE",
        "A table with too few descriptors is refused.",
        |b| table(b, &[RegionSpec::linear(0, 0x1000, 0), RegionSpec::linear(0x1000, 0x1000, 0)], 1);
    "memory/fd-surplus", Robust, Control, "vhost-user, SET_MEM_TABLE",
        "A table with too many descriptors is refused.", |b| table(b, &[RegionSpec::linear(0, 0x1000, 0)], 3);
    "memory/count-far", Robust, Control, "vhost-user, Multiple Memory regions description",
        "A count of 4294967295 regions is refused.", |b| {
            let regions = mem_table(&[RegionSpec::linear(0, 0x1000, 0)]);
            let body = [words(&[u32::MAX, 0]), regions[8..].to_vec()].concat();
            told(b, request::SET_MEM_TABLE, &body, 1)
        };
    "memory/remove-unknown", Robust, Control, "vhost-user, REM_MEM_REG",
        "Removing an unknown region is refused.", |b| {
            b.negotiated(protocol::CONFIGURE_MEM_SLOTS)?;
            told(b, request::REM_MEM_REG, &single_region(&RegionSpec::linear(0x7000, 0x1000, 0)), 0)
        };
}

/// Moves frames with rings in these regions and buffers at the end of each, and across each border. No ring
/// or receive buffer may lie across a border.
fn regions(bench: &mut Bench, regions: Vec<RegionSpec>) -> Result {
    let ends: Vec<_> = regions.iter().map(|region| region.guest + region.size).collect();
    let mut session = bench.session(&Setup { regions, size: 64, ..Setup::default() })?;
    bench.both_ways(&mut session, 20)?;
    let memory = session.nic.mem.clone();
    for end in &ends {
        sends_from(bench, &mut session, &memory, end - 300)?;
        if memory.guest(memory.user(*end)) == Some(*end) {
            sends_from(bench, &mut session, &memory, end - 106)?;
        }
    }
    bench.both_ways(&mut session, 3)
}

/// Regions whose borders cut the descriptor table and the used ring of both vrings, of 512 descriptors.
fn rings_across(bench: &mut Bench) -> Result {
    const SHARE: u64 = 0x40_0000;
    let pieces = [0x1000, 0x2000, SHARE - 0x2000, 0x2000, SHARE - 0x3000].map(|size| (size, 0));
    let regions = RegionSpec::adjoining(0x10_0000, &pieces);
    let mut session = bench.session(&Setup { regions, size: 512, ..Setup::default() })?;
    // Enough frames to pass through the whole table and wrap around the used ring.
    let frame = bench.frame(400);
    session.tx(0).send_cut(&PLAIN, &frame, &[1; 300], LIMIT)?;
    if bench.sees_frames() {
        bench.expect(&mut session, &frame)?;
    }
    bench.both_ways(&mut session, 600)
}

/// Buffers of 3000 bytes over borders at 20 KiB: the twenty-first is cut inside a frame of 1500 bytes.
fn receive_across(bench: &mut Bench) -> Result {
    let pieces = [(0x1000, 0), (0x5000, 0x1000), (0x5000, 0), (0x5000, 0x2000), (0x5000, 0), (0x10_0000, 0)];
    let regions = RegionSpec::adjoining(0x10_0000, &pieces);
    let setup = Setup { regions, size: 64, ..Setup::default() };
    let mut session = bench.started(&setup)?;
    session.rx(0).fill(32, &[3000])?;
    for _ in 0..40 {
        let frame = bench.frame(1500);
        bench.inject(&mut session, &frame)?;
        bench.arrives(&mut session, &frame)?;
    }
    Ok(())
}

fn user_addresses(bench: &mut Bench) -> Result {
    let far = RegionSpec { guest: 0x1000_0000, size: 8 << 20, user: 0x5555_0000_0000, offset: 0 };
    regions(bench, vec![far])
}

/// Starts a session to which regions can be added.
fn with_slots(bench: &Bench) -> std::result::Result<Session, Finding> {
    let want = Setup::default().protocol | protocol::CONFIGURE_MEM_SLOTS;
    let session = bench.session(&Setup { protocol: want, ..Setup::default() })?;
    match session.protocol & protocol::CONFIGURE_MEM_SLOTS {
        0 => Err(Finding::NotOffered("VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS".to_owned())),
        _ => Ok(session),
    }
}

/// Offers a frame that lies at `at` in `memory`.
fn offer_at(session: &mut Session, memory: &GuestMemory, at: u64, frame: &[u8]) -> Result {
    memory.write(at, &[PLAIN.encode().as_slice(), frame].concat());
    session.tx(0).submit(&[Part::out(at, 12 + frame.len() as u32)])?;
    Ok(session.tx(0).kick_always()?)
}

fn sends_from(bench: &mut Bench, session: &mut Session, memory: &GuestMemory, at: u64) -> Result {
    let frame = bench.frame(200);
    offer_at(session, memory, at, &frame)?;
    session.tx(0).used(LIMIT)?;
    if bench.sees_frames() {
        bench.expect(session, &frame)?;
    }
    Ok(())
}

fn add_remove(bench: &mut Bench) -> Result {
    let mut session = with_slots(bench)?;
    let more = GuestMemory::flat(0x4000_0000, 1 << 20)?;
    for _ in 0..3 {
        session.frontend.add_mem_reg(&more.specs()[0], more.fds()[0])?;
        sends_from(bench, &mut session, &more, 0x4000_0100)?;
        session.frontend.rem_mem_reg(&more.specs()[0])?;
        bench.both_ways(&mut session, 3)?;
    }
    Ok(())
}

/// At most 512: more would test the host's limits.
fn all_slots(bench: &mut Bench) -> Result {
    let mut session = with_slots(bench)?;
    let slots = session.frontend.get_max_mem_slots()?.min(512);
    let regions: Vec<_> = (1..slots)
        .map(|at| GuestMemory::flat(0x4000_0000 + at * 0x1_0000, 0x1000))
        .collect::<std::io::Result<_>>()?;
    for region in &regions {
        session.frontend.add_mem_reg(&region.specs()[0], region.fds()[0])?;
    }
    for region in &regions {
        sends_from(bench, &mut session, region, region.specs()[0].guest + 0x100)?;
    }
    bench.both_ways(&mut session, 3)
}

fn removed(bench: &mut Bench) -> Result {
    let mut session = with_slots(bench)?;
    let more = GuestMemory::flat(0x4000_0000, 1 << 20)?;
    session.frontend.add_mem_reg(&more.specs()[0], more.fds()[0])?;
    sends_from(bench, &mut session, &more, 0x4000_0100)?;
    session.frontend.rem_mem_reg(&more.specs()[0])?;
    let frame = bench.frame(200);
    offer_at(&mut session, &more, 0x4000_0100, &frame)?;
    std::thread::sleep(QUIET / 4);
    drop(session);
    bench.serves()
}

/// The file is sparse: almost none of it is allocated.
fn huge(bench: &mut Bench) -> Result {
    let region = RegionSpec::linear(0x10_0000, 1 << 40, 0);
    let mut session = bench.session(&Setup { regions: vec![region], ..Setup::default() })?;
    let memory = session.nic.mem.clone();
    sends_from(bench, &mut session, &memory, region.guest + region.size - 212)?;
    bench.both_ways(&mut session, 3)
}

fn replaced(bench: &mut Bench) -> Result {
    let mut session = bench.session(&Setup::default())?;
    for _ in 0..5 {
        bench.both_ways(&mut session, 3)?;
        session.frontend.set_mem_table(&session.nic.mem)?;
    }
    bench.both_ways(&mut session, 3)
}

fn room_for_two(bench: &mut Bench) -> Result {
    let frontend = bench.acking()?;
    let mem = GuestMemory::flat(0, 0x10000)?;
    let mut body = mem_table(&mem.specs());
    body.resize(8 + 2 * 32, 0);
    let status = frontend.tell_acked(request::SET_MEM_TABLE, &body, &mem.fds())?;
    ensure!(status == 0, "SET_MEM_TABLE with room for two answered {status:#x}");
    Ok(())
}

fn table(bench: &mut Bench, specs: &[RegionSpec], fds: usize) -> Result {
    told(bench, request::SET_MEM_TABLE, &mem_table(specs), fds)
}

/// Sends a request with this many descriptors of a 64 KiB file. It must be refused.
fn told(bench: &mut Bench, request: u32, body: &[u8], fds: usize) -> Result {
    let mem = GuestMemory::flat(0, 0x10000)?;
    let fds: Vec<BorrowedFd<'_>> = mem.fds().into_iter().cycle().take(fds).collect();
    let frontend = match request {
        request::REM_MEM_REG => bench.negotiated(protocol::REPLY_ACK | protocol::CONFIGURE_MEM_SLOTS)?,
        _ => bench.acking()?,
    };
    let what = format!("{} {body:02x?} with {} descriptors", request_name(request), fds.len());
    refused(frontend.tell_acked(request, body, &fds), &what)?;
    drop(frontend);
    bench.serves()
}
