//! The modules of a crate, each with its file, and the meaning of a path in one of them: the file that
//! defines its last name. A name that a module only re-exports (`pub use`) belongs to the file that defines
//! it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::tokens::{Import, Source};

/// Reads a file's text: from the disk, or from a test.
pub(crate) type Reader<'a> = dyn Fn(&Path) -> Option<String> + 'a;

/// The index of a module in [`Modules`].
pub(crate) type Id = usize;

#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) file: PathBuf,
    pub(crate) parent: Option<Id>,
    pub(crate) children: BTreeMap<String, Id>,
    pub(crate) source: Source,
}

#[derive(Debug, Default)]
pub(crate) struct Modules {
    pub(crate) all: Vec<Module>,
    /// The libraries by their names in a path.
    libraries: BTreeMap<String, Id>,
}

/// The target of a path.
#[derive(Debug)]
pub(crate) enum Target {
    Module(Id),
    Item(Id, String),
}

/// More re-exports in a row than any source has; ends a `pub use` of itself.
const DEPTH: usize = 16;

impl Modules {
    /// Adds the crate with this root file; other crates can use a library by its name.
    pub(crate) fn add_crate(&mut self, library: Option<&str>, root: &Path, read: &Reader<'_>) {
        let folder = root.parent().unwrap_or(Path::new(""));
        let id = self.add_file(None, root, folder, read);
        if let Some(name) = library {
            self.libraries.insert(name.replace('-', "_"), id);
        }
    }

    /// `folder`: where the files of its modules are.
    fn add_file(&mut self, parent: Option<Id>, file: &Path, folder: &Path, read: &Reader<'_>) -> Id {
        let text = read(file).unwrap_or_else(|| panic!("{} cannot be read", file.display()));
        let source = Source::of(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        self.add(parent, file, folder, source, read)
    }

    fn add(
        &mut self,
        parent: Option<Id>,
        file: &Path,
        folder: &Path,
        mut source: Source,
        read: &Reader<'_>,
    ) -> Id {
        let id = self.all.len();
        let (files, inline) = (std::mem::take(&mut source.files), std::mem::take(&mut source.inline));
        let children = BTreeMap::new();
        self.all.push(Module { file: file.into(), parent, children, source });
        for name in files.into_iter().filter(|name| !is_test(name)) {
            let beside = folder.join(format!("{name}.rs"));
            let file = if read(&beside).is_some() { beside } else { folder.join(&name).join("mod.rs") };
            let child = self.add_file(Some(id), &file, &folder.join(&name), read);
            self.all[id].children.insert(name, child);
        }
        for (name, source) in inline {
            let child = self.add(Some(id), file, &folder.join(&name), source, read);
            self.all[id].children.insert(name, child);
        }
        id
    }

    /// Returns the root of its crate, the modules between, and the module.
    pub(crate) fn line(&self, id: Id) -> Vec<Id> {
        let mut line: Vec<_> = std::iter::successors(Some(id), |id| self.all[*id].parent).collect();
        line.reverse();
        line
    }

    pub(crate) fn file(&self, id: Id) -> String {
        self.all[id].file.display().to_string()
    }

    /// Returns the names that each module uses of each other.
    pub(crate) fn arrows(&self) -> impl Iterator<Item = (Id, Id, BTreeSet<String>)> {
        (0..self.all.len())
            .flat_map(|from| self.taken(from).into_iter().map(move |(to, names)| (from, to, names)))
    }

    /// Returns the target of this path in module `at`; `None` for a path that leads out of the repository.
    fn target(&self, at: Id, path: &[String]) -> Option<Target> {
        self.target_within(at, path, DEPTH)
    }

    fn target_within(&self, at: Id, path: &[String], depth: usize) -> Option<Target> {
        let (first, mut rest) = path.split_first()?;
        let mut target = match first.as_str() {
            "crate" => Target::Module(self.line(at)[0]),
            "self" => Target::Module(at),
            "super" => Target::Module(self.all[at].parent?),
            name => match self.named(at, name, depth) {
                Some(target) => target,
                None => Target::Module(*self.libraries.get(name)?),
            },
        };
        while let (Target::Module(id), Some((name, left))) = (&target, rest.split_first()) {
            target = match name.as_str() {
                "super" => Target::Module(self.all[*id].parent?),
                name => self.named(*id, name, depth).unwrap_or_else(|| Target::Item(*id, name.into())),
            };
            rest = left;
        }
        Some(target)
    }

    /// Returns the target of a name that is a module or imported; a definition is its own target.
    fn named(&self, at: Id, name: &str, depth: usize) -> Option<Target> {
        let module = &self.all[at];
        let depth = depth.checked_sub(1)?;
        if let Some(child) = module.children.get(name) {
            return Some(Target::Module(*child));
        }
        if module.source.defined.contains(name) {
            return None;
        }
        if let Some(import) = module.source.imports.iter().find(|import| import.name == name) {
            return self.target_within(at, &import.path, depth);
        }
        let globs = module.source.imports.iter().filter(|import| import.name == "*" && import.public);
        globs.into_iter().find_map(|glob| match self.target_within(at, &glob.path, depth)? {
            Target::Module(id) if self.all[id].source.defined.contains(name) => {
                Some(Target::Item(id, name.into()))
            }
            Target::Module(id) => self.named(id, name, depth),
            Target::Item(..) => None,
        })
    }

    /// Returns the names that a module uses of others.
    fn taken(&self, at: Id) -> BTreeMap<Id, BTreeSet<String>> {
        let source = &self.all[at].source;
        let mut taken: BTreeMap<Id, BTreeSet<String>> = BTreeMap::new();
        let mut take = |target| {
            if let Some(Target::Item(id, name)) = target {
                taken.entry(id).or_default().insert(name);
            }
        };
        // Names that are only re-exported are not used, nor is a module without used names.
        let used = |import: &&Import| !import.public || source.words.contains(&import.name);
        for import in source.imports.iter().filter(used) {
            take(match self.target(at, &import.path) {
                Some(Target::Module(id)) if import.name == "*" => Some(Target::Item(id, "*".into())),
                target => target,
            });
        }
        source.paths.iter().for_each(|path| take(self.target(at, path)));
        taken
    }
}

/// Returns whether a file of this name is only for tests, whatever precedes its `mod`.
fn is_test(module: &str) -> bool {
    matches!(module, "tests" | "testing") || module.ends_with("_tests")
}
