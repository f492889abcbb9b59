//! Every built package has a licence from the list in `deny.toml`, comes from a registry or from this
//! repository, and has one version, or a reason for two. cargo-deny checks the same file more strictly: it
//! reads licence texts, and distinguishes registries. This test covers machines without cargo-deny.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value as Json;
use spdx::{Expression, LicenseReq, ParseMode};
use toml::Value;

use super::metadata;
use protocol_tests::lab::repository;

/// Returns the list in `deny.toml` at this place: each entry, or its `crate`.
fn listed(section: &str, list: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(repository().join("deny.toml")).expect("deny.toml");
    let deny: Value = toml::from_str(&text).expect("TOML");
    let list = deny[section][list].as_array().expect("a list");
    let word = |entry: &Value| entry.get("crate").unwrap_or(entry).as_str().expect("a word").to_owned();
    list.iter().map(word).collect()
}

/// Returns the packages built for volt's target, from `cargo metadata`.
fn packages() -> Vec<Json> {
    let targets = listed("graph", "targets");
    let options: Vec<_> = targets.iter().flat_map(|target| ["--filter-platform", target]).collect();
    let mut metadata = metadata("Cargo.toml", &options);
    let Json::Array(packages) = metadata["packages"].take() else { panic!("no packages") };
    assert!(packages.len() > 20, "only {} packages were found", packages.len());
    packages
}

fn name(package: &Json) -> String {
    let text = |field: &str| package[field].as_str().unwrap_or("?").to_owned();
    format!("{}@{}", text("name"), text("version"))
}

/// Returns the fault of a package's licence, if any.
fn licence_fault(licence: &Json, allowed: &BTreeSet<String>) -> Option<String> {
    let Some(licence) = licence.as_str() else { return Some("names no licence".into()) };
    // Old packages write MIT/Apache-2.0.
    let expression = match Expression::parse_mode(licence, ParseMode::LAX) {
        Ok(expression) => expression,
        Err(error) => {
            return Some(format!("has the licence '{licence}', which is no SPDX expression: {error}"));
        }
    };
    let is_allowed = |licence: &LicenseReq| allowed.contains(&licence.to_string());
    (!expression.evaluate(is_allowed)).then(|| format!("has the licence '{licence}'"))
}

/// Returns the fault of a package's source, if any.
fn source_fault(source: &Json, manifest: &str, repository: &Path) -> Option<String> {
    match source.as_str() {
        Some(source) if source.starts_with("registry+") || source.starts_with("sparse+") => None,
        Some(source) => Some(format!("comes from {source}")),
        None if Path::new(manifest).starts_with(repository) => None,
        None => Some(format!("comes from {manifest}, outside of this repository")),
    }
}

#[test]
fn licences_are_of_the_list_in_deny_toml() {
    let allowed = listed("licenses", "allow");
    let said = |package: &Json| {
        licence_fault(&package["license"], &allowed).map(|fault| name(package) + " " + &fault)
    };
    let faults: Vec<_> = packages().iter().filter_map(said).collect();
    assert!(faults.is_empty(), "deny.toml allows {allowed:?}, but\n{}", faults.join("\n"));
}

#[test]
fn packages_come_from_a_registry_or_from_here() {
    let said = |package: &Json| {
        let manifest = package["manifest_path"].as_str().expect("a path");
        Some(name(package) + " " + &source_fault(&package["source"], manifest, &repository())?)
    };
    let faults: Vec<_> = packages().iter().filter_map(said).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// An entry `name@1` of `skip` allows version 1 of a package beside another.
#[test]
fn a_package_has_one_version_or_a_reason_for_two() {
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut skipped = listed("bans", "skip");
    let skips: Vec<_> = skipped.iter().cloned().collect();
    for package in packages().iter().map(name) {
        let skip = |skip: &&String| package == **skip || package.starts_with(&format!("{skip}."));
        match skips.iter().find(skip) {
            Some(skip) => drop(skipped.remove(skip)),
            None => versions
                .entry(package.split('@').next().unwrap_or_default().into())
                .or_default()
                .push(package),
        }
    }
    let twice: Vec<_> = versions.values().filter(|versions| versions.len() > 1).collect();
    assert!(twice.is_empty(), "{twice:?}: use one of them, or give a reason in deny.toml");
    assert!(skipped.is_empty(), "deny.toml skips {skipped:?}, which nothing needs");
}

/// Conditions that `cargo package` does not check but a registry or user does: each package has licences and
/// a description, and its dependencies in this repository have versions.
#[test]
fn what_can_be_published_is_complete() {
    let metadata = metadata("Cargo.toml", &["--no-deps"]);
    let published = |package: &&Json| package["publish"] != Json::Array(Vec::new());
    for package in metadata["packages"].as_array().expect("packages").iter().filter(published) {
        let (name, manifest) = (name(package), package["manifest_path"].as_str().expect("a path"));
        for file in ["LICENSE-APACHE", "LICENSE-BSD-3-Clause"] {
            let text = |path: &Path| fs::read_to_string(path).ok();
            let same = text(&Path::new(manifest).with_file_name(file)) == text(&repository().join(file));
            assert!(same, "{name} lacks {file}: link it to the one at the top of the repository");
        }
        assert!(package["description"].is_string(), "{name} has no description");
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let versioned = dependency["req"] != "*" || dependency["kind"] == "dev";
            assert!(versioned, "{name}: {} needs a version in [workspace.dependencies]", dependency["name"]);
        }
    }
}

#[test]
fn what_is_not_allowed_is_a_fault() {
    let allowed = BTreeSet::from(["MIT", "Apache-2.0", "BSD-3-Clause"].map(String::from));
    let licence = |text: &str| licence_fault(&Json::from(text), &allowed).is_none();
    for good in ["MIT", "MIT/Apache-2.0", "GPL-3.0-only OR MIT", "(MIT OR ISC) AND Apache-2.0"] {
        assert!(licence(good), "{good}");
    }
    for bad in ["GPL-3.0-only", "MIT AND ISC", "Apache-2.0 WITH LLVM-exception", "my own", ""] {
        assert!(!licence(bad), "{bad}");
    }
    assert!(licence_fault(&Json::Null, &allowed).is_some());
    let source = |source: &str, manifest| {
        let source = if source.is_empty() { Json::Null } else { source.into() };
        source_fault(&source, manifest, Path::new("/volt")).is_none()
    };
    assert!(
        source("registry+https://example.org", "/elsewhere/Cargo.toml") && source("", "/volt/vmm/Cargo.toml")
    );
    assert!(!source("git+https://example.org", "/elsewhere/Cargo.toml") && !source("", "/volta/Cargo.toml"));
}
