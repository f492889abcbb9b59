//! Checks that links and paths in pages lead to files and headings that exist.

use std::path::{Path, PathBuf};

use super::pages::{Page, pages};
use protocol_tests::lab::repository;

/// Folders of the repository. Inline code that begins with one of them is a path.
const FOLDERS: [&str; 5] = ["docs/", "net-daemon/", "protocol-tests/", "scripts/", "vmm/"];

/// Returns the fault of a link of `page`.
fn fault(page: &Page, link: &str, all: &[Page]) -> Option<String> {
    if link.starts_with("https://") {
        return None;
    }
    let (file, anchor) = link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
    let here = page.path.parent().unwrap_or(Path::new("/"));
    let target = if file.is_empty() { page.path.clone() } else { normal(&here.join(file)) };
    let page = all.iter().find(|page| page.path == target);
    if page.is_none() && !target.exists() {
        return Some(format!("{link} leads to nothing"));
    }
    let anchor = anchor?;
    match page {
        Some(page) if page.anchors.contains(anchor) => None,
        Some(_) => Some(format!("{link}: the page has no such heading")),
        None => Some(format!("{link}: no page has headings there")),
    }
}

/// Resolves `..`.
fn normal(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut path, part| {
        if part.as_os_str() == ".." {
            path.pop();
        } else {
            path.push(part);
        }
        path
    })
}

/// Returns the repository path that inline code names, if any.
fn path(code: &str) -> Option<&str> {
    let word = code.split(' ').next()?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "./-_@".contains(c);
    (FOLDERS.iter().any(|folder| word.starts_with(folder)) && word.chars().all(is_plain)).then_some(word)
}

#[test]
fn links_and_paths_lead_somewhere() {
    let all = pages();
    let mut said = String::new();
    for page in &all {
        for (line, link) in &page.links {
            if let Some(fault) = fault(page, link, &all) {
                said += &format!("{}: {fault}\n", page.place(*line));
            }
        }
        for (line, code) in &page.code {
            if let Some(path) = path(code)
                && !repository().join(path).exists()
            {
                said += &format!("{}: there is no {path}\n", page.place(*line));
            }
        }
    }
    assert!(said.is_empty(), "{said}");
}

#[test]
fn what_leads_nowhere_is_found() {
    let at = |name: &str| repository().join(name);
    let other = Page::of(&at("docs/other.md"), "# There");
    let page = Page::of(&at("docs/page.md"), "# Here");
    let all = [page, other];
    let fault = |link| fault(&all[0], link, &all);
    assert_eq!(fault("https://example.org/a#b"), None);
    assert_eq!((fault("#here"), fault("../README.md")), (None, None));
    assert!(fault("http://example.org").is_some() && fault("../READYOU.md").is_some());
    assert!(fault("#there").is_some_and(|said| said.contains("no such heading")));
    assert!(fault("../Cargo.toml#there").is_some());
    assert_eq!(
        (path("scripts/test --all"), path("vmm/src/*.rs"), path("/srv/vmm/")),
        (Some("scripts/test"), None, None)
    );
}
