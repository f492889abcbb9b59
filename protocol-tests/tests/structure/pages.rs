//! Reads the pages of the documentation: links, headings, inline code and commands.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

use super::columns::files;
use protocol_tests::lab::repository;

/// A page.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) path: PathBuf,
    /// Targets of links, with the number of their line.
    pub(super) links: Vec<(usize, String)>,
    /// Anchors of the headings.
    pub(super) anchors: BTreeSet<String>,
    /// Inline code, with its line.
    pub(super) code: Vec<(usize, String)>,
    /// Fenced `sh` blocks, with their first line.
    pub(super) commands: Vec<(usize, String)>,
}

impl Page {
    pub(super) fn of(path: &Path, text: &str) -> Page {
        let mut page = Page { path: path.to_owned(), ..Page::default() };
        let starts: Vec<_> = text.match_indices('\n').map(|(at, _)| at).collect();
        let line = |range: &Range<usize>| starts.partition_point(|start| *start < range.start) + 1;
        let (mut heading, mut block) = (None::<String>, None::<(usize, String)>);
        let mut seen = BTreeMap::<String, usize>::new();
        for (event, range) in Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter() {
            match event {
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    page.links.push((line(&range), dest_url.into_string()));
                }
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    let name = anchor(&heading.take().unwrap_or_default());
                    let again = seen.entry(name.clone()).or_default();
                    page.anchors.insert(if *again == 0 { name } else { format!("{name}-{again}") });
                    *again += 1;
                }
                Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(language))) if &*language == "sh" => {
                    block = Some((line(&range) + 1, String::new()));
                }
                Event::End(TagEnd::CodeBlock) => page.commands.extend(block.take()),
                Event::Text(text) => {
                    heading.iter_mut().for_each(|heading| heading.push_str(&text));
                    block.iter_mut().for_each(|(_, block)| block.push_str(&text));
                }
                Event::Code(code) => {
                    heading.iter_mut().for_each(|heading| heading.push_str(&code));
                    page.code.push((line(&range), code.into_string()));
                }
                _ => {}
            }
        }
        page
    }

    /// Returns a place in the page, for a message.
    pub(super) fn place(&self, line: usize) -> String {
        format!("{}:{line}", super::relative(&self.path))
    }
}

/// Returns the anchor of a heading, like GitHub and GitLab.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

/// Returns all pages of the repository.
pub(super) fn pages() -> Vec<Page> {
    let mut found = Vec::new();
    files(&repository(), &|path| path.extension().is_some_and(|end| end == "md"), &mut found);
    assert!(found.len() > 20, "only {found:?}");
    found.sort();
    found.iter().map(|path| Page::of(path, &fs::read_to_string(path).expect("a page"))).collect()
}

#[test]
fn a_page_is_read_as_its_reader_sees_it() {
    let text = "# The `--tap` option\n\n[a](b.md#c) `x\ny`\n\n```sh\nvolt-netd \\\n  --tap t\n```\n\n\
                ```\n[no](link)\n```\n## Again\n## Again\n";
    let page = Page::of(Path::new("p.md"), text);
    assert_eq!(page.links, [(3, "b.md#c".to_owned())]);
    assert_eq!(page.code, [(1, "--tap".to_owned()), (3, "x y".to_owned())]);
    assert_eq!(page.commands, [(7, "volt-netd \\\n  --tap t\n".to_owned())]);
    let anchors = ["again", "again-1", "the---tap-option"].map(str::to_owned);
    assert_eq!(page.anchors, anchors.into());
}
