use super::*;

fn region(guest: u64, user: u64, size: u64) -> Region {
    let mapping = Arc::new(MmapRegion::new(0x2000).unwrap());
    Region::new(mapping, 0, guest, user, size).unwrap()
}

fn lens(memory: &GuestMemory, guest: u64, len: u32) -> Option<Vec<usize>> {
    let mut parts = Vec::new();
    memory.parts(guest, len, &Cell::new(0), |part| parts.push(part.len())).then_some(parts)
}

#[test]
fn a_region_must_be_inside_its_mapping_and_the_address_spaces() {
    let mapping = Arc::new(MmapRegion::new(0x2000).unwrap());
    let new = |offset, guest, user, size| Region::new(mapping.clone(), offset, guest, user, size).is_some();
    assert!(new(0x1000, 0, 0, 0x1000));
    assert!(!new(0x1001, 0, 0, 0x1000));
    assert!(!new(usize::MAX, 0, 0, 0x1000));
    assert!(!new(0, u64::MAX - 0xfff, 0, 0x1001));
    assert!(!new(0, 0, u64::MAX - 0xfff, 0x1001));
    assert!(!new(0, 0, 0, 0));
    assert!(!new(0, 0, 0, u64::MAX));
    for protection in [libc::PROT_NONE, libc::PROT_READ] {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let mapping = Arc::new(MmapRegion::build(None, 0x2000, protection, flags).unwrap());
        assert!(Region::new(mapping, 0, 0, 0, 0x2000).is_none(), "touching it would end the process");
    }
}

#[test]
fn overlaps_are_refused_and_order_does_not_matter() {
    assert!(GuestMemory::new(vec![region(0x2000, 0x9000, 0x2000), region(0, 0x5000, 0x2000)]).is_ok());
    let guest = GuestMemory::new(vec![region(0, 0x5000, 0x2000), region(0x1fff, 0x9000, 0x1000)]);
    assert!(matches!(guest, Err(MemoryError::GuestOverlap(0x1fff))));
}

#[test]
fn ranges_are_checked_whole_and_across_regions() {
    let memory =
        GuestMemory::new(vec![region(0x1000, 0x10000, 0x2000), region(0x3000, 0x80000, 0x1000)]).unwrap();
    assert_eq!(lens(&memory, 0x1000, 0x2000), Some(vec![0x2000]));
    assert_eq!(lens(&memory, 0x2ff0, 0x20), Some(vec![0x10, 0x10]));
    assert_eq!(lens(&memory, 0x2ff0, 0x1011), None);
    assert_eq!(lens(&memory, 0xfff, 1), None);
    assert_eq!(lens(&memory, u64::MAX, 1), None);
    assert_eq!(lens(&memory, 0x4000, 1), None);
    assert_eq!(memory.user_to_guest(0x80fff), Some(0x3fff));
    assert_eq!(memory.user_to_guest(0x81000), None);
}

#[test]
fn areas_may_cross_one_border() {
    let memory = GuestMemory::new(vec![
        region(0, 0x10000, 0x1000),
        region(0x1000, 0x80000, 0x10),
        region(0x1010, 0x90000, 0x1000),
    ])
    .unwrap();
    let area = memory.area(0xff0, 0x20, 16).unwrap();
    assert_ne!(area.at::<u8>(0xf).wrapping_add(1), area.at::<u8>(0x10));
    let error = |guest, len| memory.area(guest, len, 16).unwrap_err();
    assert_eq!(error(0xff0, 0x30), AreaError::Regions { guest: 0xff0, len: 0x30, regions: 3 });
    assert_eq!(error(0xff8, 8), AreaError::Alignment { guest: 0xff8, align: 16 });
    assert_eq!(error(0x2000, 0x20), AreaError::Unmapped { guest: 0x2000, len: 0x20 });
}
