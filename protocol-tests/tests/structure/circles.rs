//! Files form no cycle, and no two neighbours in a folder depend on each other. A lower file does not know
//! the files above it, within a package as between packages, where cargo ensures it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::graph::{between_files, between_neighbours, told};
use super::modules::Modules;
use super::{metadata, relative};
use protocol_tests::lab::repository;

const WHAT_TO_DO: &str = "Files of a circle can be read, tested and moved only together. Break it where the \
    fewest names tie it: move what both sides need into a file below both, or hand the upper one's part to \
    the lower one as an argument, a closure or a trait.";

/// Returns the libraries and programs of the repository; nothing depends on tests, benches and examples.
fn repository_modules() -> Modules {
    let read = |path: &Path| fs::read_to_string(repository().join(path)).ok();
    let mut modules = Modules::default();
    for manifest in ["Cargo.toml", "protocol-tests/fuzz/Cargo.toml"] {
        let metadata = metadata(manifest, &["--no-deps"]);
        let packages = metadata["packages"].as_array().expect("packages");
        for target in packages.iter().flat_map(|package| package["targets"].as_array().expect("targets")) {
            let kinds = target["kind"].as_array().expect("kinds");
            let is = |kind: &str| kinds.iter().any(|each| each == kind);
            let (name, root) = (target["name"].as_str(), target["src_path"].as_str().expect("a path"));
            if is("lib") || is("bin") {
                let root = relative(Path::new(root));
                modules.add_crate(name.filter(|_| is("lib")), Path::new(&root), &read);
            }
        }
    }
    modules
}

/// Describes the cycles with their connections; empty if there are none.
fn circles_of(modules: &Modules) -> String {
    let has_folder = |circle: &BTreeSet<&str>| circle.iter().any(|place| place.ends_with('/'));
    told("files", &between_files(modules), |_| true)
        + &told("neighbours", &between_neighbours(modules), has_folder)
}

#[test]
fn the_repository_has_no_circles() {
    let modules = repository_modules();
    assert!(modules.all.len() > 100, "only {} modules were found", modules.all.len());
    let circles = circles_of(&modules);
    assert!(circles.is_empty(), "{circles}{WHAT_TO_DO}");
}

/// Returns the cycles of a library `house` and a program that uses it, made of these files.
fn of(files: &[(&str, &str)]) -> String {
    let files: BTreeMap<_, _> = files.iter().map(|(name, text)| (PathBuf::from(name), text)).collect();
    let read = |path: &Path| files.get(path).map(ToString::to_string);
    let mut modules = Modules::default();
    modules.add_crate(Some("house"), Path::new("lib.rs"), &read);
    if files.contains_key(Path::new("bin/main.rs")) {
        modules.add_crate(None, Path::new("bin/main.rs"), &read);
    }
    circles_of(&modules)
}

#[test]
fn files_that_import_each_other_are_a_circle_with_its_names() {
    let circles = of(&[
        ("lib.rs", "mod door; mod wall;"),
        ("door.rs", "use crate::wall::{Brick, Wall as Side}; pub struct Door(Side); pub fn hinge() {}"),
        ("wall.rs", "pub struct Brick; pub struct Wall; fn open() { super::door::hinge(); }"),
    ]);
    let said = "circle of 2 files: door.rs, wall.rs\n  door.rs takes from wall.rs: Brick, Wall\n  \
        wall.rs takes from door.rs: hinge\n";
    assert!(circles.starts_with(said), "{circles}");
}

#[test]
fn what_follows_a_field_for_tests_counts() {
    let circles = of(&[
        ("lib.rs", "mod door; mod wall;"),
        (
            "door.rs",
            "pub struct Door { #[cfg(test)] #[expect(unused)] width: u8, open: fn(crate::wall::Wall) }",
        ),
        ("wall.rs", "pub struct Wall(crate::door::Door);"),
    ]);
    assert!(circles.starts_with("circle of 2 files: door.rs, wall.rs\n"), "{circles}");
}

#[test]
fn a_circle_may_be_long_and_lead_through_macros_and_re_exports() {
    let circles = of(&[
        ("lib.rs", "pub mod roof; mod wall; mod floor;"),
        ("roof/mod.rs", "mod tile; pub use tile::*; fn rain() { println!(\"{}\", crate::wall::height()) }"),
        ("roof/tile.rs", "use super::super::floor; pub struct Tile; fn f() { floor::area::<u8>(); }"),
        ("wall.rs", "use crate::floor; pub fn height() -> u32 { floor::LEVEL }"),
        ("floor.rs", "pub const LEVEL: u32 = 1; pub fn area<T>() { let tile: crate::roof::Tile; }"),
    ]);
    assert!(circles.contains("circle of 2 files: floor.rs, roof/tile.rs\n"), "{circles}");
    assert!(circles.contains("circle of 3 neighbours: floor.rs, roof/, wall.rs\n"), "{circles}");
}

#[test]
fn a_module_may_hand_on_what_it_does_not_take() {
    let of = |module| {
        let floor = "pub struct Level; pub struct Ground(crate::wall::Beam);";
        of(&[("lib.rs", "mod wall; mod floor;"), ("wall.rs", module), ("floor.rs", floor)])
    };
    assert_eq!(of("pub struct Beam; pub(crate) use crate::floor::Level;"), "");
    let circles = of("pub struct Beam(Level); pub(crate) use crate::floor::Level;");
    assert!(circles.starts_with("circle of 2 files: floor.rs, wall.rs\n"), "{circles}");
}

#[test]
fn what_a_module_defines_is_for_its_children_but_leads_nobody_around() {
    let module = "mod brick; use brick::Brick; pub struct Mortar; pub struct Wall(Brick);";
    let child = "use super::*; pub struct Brick(Mortar);";
    assert_eq!(of(&[("lib.rs", "mod wall;"), ("wall.rs", module), ("wall/brick.rs", child)]), "");
    let circles = of(&[
        ("lib.rs", "mod wall; mod floor;"),
        ("wall.rs", "mod brick; use crate::floor::Level; pub struct Mortar(Level);"),
        ("wall/brick.rs", "use super::Mortar; pub fn lay() {}"),
        ("floor.rs", "pub struct Level; use crate::wall::*; fn f() { crate::wall::brick::lay(); }"),
    ]);
    let neighbours = "circle of 2 neighbours: floor.rs, wall/\n  floor.rs takes from wall/: *, lay\n  \
        wall/ takes from floor.rs: Level in wall.rs\n";
    assert!(circles.ends_with(neighbours), "{circles}");
}

#[test]
fn folders_can_point_at_each_other_without_a_circle_of_files() {
    let files = [
        ("lib.rs", "mod east; mod west;"),
        ("east/mod.rs", "pub mod bed; pub mod sun;"),
        ("east/bed.rs", "use crate::west::lamp::Lamp;"),
        ("east/sun.rs", "pub struct Sun;"),
        ("west/mod.rs", "pub mod lamp; pub mod desk;"),
        ("west/lamp.rs", "pub struct Lamp;"),
        ("west/desk.rs", "fn f(sun: &house::east::sun::Sun) {}"),
    ];
    let said = "circle of 2 neighbours: east/, west/\n  east/ takes from west/: Lamp in east/bed.rs\n  \
        west/ takes from east/: Sun in west/desk.rs\n";
    assert_eq!(of(&files), said);
}

const GROUND: &str = "
    mod stone { pub(super) struct Stone; } use stone::Stone; pub use crate::upper::Bed as Rest;
    // use crate::upper::Bed;
    pub struct Ground { #[cfg(test)] bed: crate::upper::Bed, text: &'static str }
    pub fn lay<T, U>() -> &'static str { \"crate::upper::Bed\" }
    #[cfg(test)] use crate::upper::{Bed, Room};
    #[cfg(test)] fn rest<T, U>(bed: T) -> crate::upper::Room { crate::upper::Bed::new() }
    #[cfg(test)] mod nights { use crate::upper::Bed; }";

const BED: &str = "
    use std::fmt; use super::room; use crate::ground::{self, Ground};
    pub struct Bed(room::Room);
    impl fmt::Display for Bed {}
    fn f() { ground::lay::<u8, u8>(); Ground::new(); }";

#[test]
fn a_house_without_circles_has_none() {
    let with_ground = |ground| {
        of(&[
            ("lib.rs", "mod ground; pub mod upper; mod testing; mod ground_tests; pub use upper::Bed;"),
            ("ground.rs", ground),
            ("upper/mod.rs", "mod bed; mod room; pub use bed::Bed; pub use self::room::Room;"),
            ("upper/bed.rs", BED),
            ("upper/room.rs", "pub struct Room;"),
            ("bin/main.rs", "use house::Bed; fn main() { house::upper::Room::new(); }"),
        ])
    };
    assert_eq!(with_ground(GROUND), "");
    let circles = with_ground(&GROUND.replace("#[cfg(test)]", ""));
    assert!(
        circles.contains("ground.rs takes from upper/bed.rs: Bed\n"),
        "tests are what is left out: {circles}"
    );
}
