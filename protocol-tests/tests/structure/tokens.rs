//! The connections of one source file to others: its `use` declarations, its paths, its modules and its
//! definitions. Works on tokens, not on a syntax tree, so that paths within macro calls are included.

use std::collections::BTreeSet;
use std::mem;

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// A path's names, from its first (such as `crate` or `super`).
pub(crate) type Names = Vec<String>;

/// One name that a `use` imports; `*` stands for all.
#[derive(Debug)]
pub(crate) struct Import {
    pub(crate) name: String,
    pub(crate) path: Names,
    /// Whether it is re-exported, by any kind of `pub`.
    pub(crate) public: bool,
}

/// The contents of one module, without tests.
#[derive(Debug, Default)]
pub(crate) struct Source {
    pub(crate) imports: Vec<Import>,
    pub(crate) paths: BTreeSet<Names>,
    /// Names that stand alone, without names that are only re-exported.
    pub(crate) words: BTreeSet<String>,
    pub(crate) defined: BTreeSet<String>,
    /// `mod x;`
    pub(crate) files: Vec<String>,
    /// `mod x { }`
    pub(crate) inline: Vec<(String, Source)>,
}

const ITEMS: [&str; 9] = ["struct", "enum", "trait", "fn", "const", "static", "type", "union", "macro_rules"];

impl Source {
    pub(crate) fn of(text: &str) -> Result<Self, String> {
        let tokens: TokenStream = text.parse().map_err(|error| format!("{error}"))?;
        let mut source = Self::default();
        source.read(tokens, true);
        Ok(source)
    }

    /// `top`: not within an item, where definitions belong to that item.
    fn read(&mut self, tokens: TokenStream, top: bool) {
        let tokens: Vec<_> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            at = match &tokens[at] {
                TokenTree::Punct(punct) if punct.as_char() == '#' => self.attribute(&tokens, at),
                TokenTree::Group(group) => {
                    self.read(group.stream(), false);
                    at + 1
                }
                TokenTree::Ident(ident) => self.name(&tokens, at, &ident.to_string(), top),
                _ => at + 1,
            };
        }
    }

    /// Skips an attribute, and its item if that is only for tests.
    fn attribute(&mut self, tokens: &[TokenTree], at: usize) -> usize {
        let at = at + 1 + usize::from(is_punct(tokens.get(at + 1), '!'));
        match tokens.get(at) {
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Bracket => {
                if for_tests(group) {
                    past_item(tokens, at + 1)
                } else {
                    at + 1
                }
            }
            _ => at,
        }
    }

    fn name(&mut self, tokens: &[TokenTree], at: usize, word: &str, top: bool) -> usize {
        let next = tokens.get(at + 1);
        match (word, next) {
            ("pub", Some(TokenTree::Group(group))) if group.delimiter() == Delimiter::Parenthesis => at + 2,
            ("use", Some(next)) if !is_punct(Some(next), '<') => {
                let end =
                    (at..tokens.len()).find(|at| is_punct(tokens.get(*at), ';')).unwrap_or(tokens.len());
                self.import(&tokens[at + 1..end], Vec::new(), is_public(&tokens[..at]));
                end
            }
            ("mod", Some(TokenTree::Ident(name))) => {
                match tokens.get(at + 2) {
                    Some(TokenTree::Group(body)) => {
                        let mut inner = Self::default();
                        inner.read(body.stream(), true);
                        self.inline.push((name.to_string(), inner));
                    }
                    _ => self.files.push(name.to_string()),
                }
                at + 3
            }
            (item, _) if ITEMS.contains(&item) => {
                let named = if item == "macro_rules" { tokens.get(at + 2) } else { next };
                if let (true, Some(TokenTree::Ident(name))) = (top, named) {
                    self.defined.insert(name.to_string());
                }
                at + 1
            }
            _ => self.path(tokens, at),
        }
    }

    /// Reads a path, or a single name; names after a type's `>::` are neither.
    fn path(&mut self, tokens: &[TokenTree], mut at: usize) -> usize {
        let begins = !(at >= 2 && is_separator(tokens, at - 2));
        let mut names = Names::new();
        while let Some(TokenTree::Ident(ident)) = tokens.get(at) {
            names.push(ident.to_string());
            at += 1;
            if !is_separator(tokens, at) {
                break;
            }
            at += 2;
        }
        if begins && names.len() == 1 {
            self.words.append(&mut names.into_iter().collect());
        } else if begins {
            self.paths.insert(names);
        }
        at
    }

    /// Reads a tree of a `use`, after these names.
    fn import(&mut self, tree: &[TokenTree], mut names: Names, public: bool) {
        let mut renamed = None;
        for (at, token) in tree.iter().enumerate() {
            match token {
                TokenTree::Ident(ident) if ident == "as" => {
                    renamed = tree.get(at + 1).map(ToString::to_string);
                    break;
                }
                TokenTree::Ident(ident) => names.push(ident.to_string()),
                TokenTree::Punct(punct) if punct.as_char() == '*' => renamed = Some("*".into()),
                TokenTree::Group(group) => {
                    let inner: Vec<_> = group.stream().into_iter().collect();
                    for tree in inner.split(|token| is_punct(Some(token), ',')) {
                        self.import(tree, names.clone(), public);
                    }
                    return;
                }
                _ => {}
            }
        }
        if names.len() > 1 && names.last().is_some_and(|last| last == "self") {
            names.pop();
        }
        if let Some(last) = names.last().filter(|_| !tree.is_empty()) {
            self.imports.push(Import {
                name: renamed.unwrap_or(last.clone()),
                path: mem::take(&mut names),
                public,
            });
        }
    }
}

pub(crate) fn is_punct(token: Option<&TokenTree>, wanted: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == wanted)
}

fn is_separator(tokens: &[TokenTree], at: usize) -> bool {
    is_punct(tokens.get(at), ':') && is_punct(tokens.get(at + 1), ':')
}

/// Returns whether these tokens end with `pub`, `pub(crate)` or the like.
fn is_public(before: &[TokenTree]) -> bool {
    let before = match before {
        [before @ .., TokenTree::Group(group)] if group.delimiter() == Delimiter::Parenthesis => before,
        _ => before,
    };
    matches!(before.last(), Some(TokenTree::Ident(word)) if word == "pub")
}

/// `#[cfg(test)]`, also as one of several conditions.
pub(crate) fn for_tests(attribute: &Group) -> bool {
    let text = attribute.stream().to_string().replace(' ', "");
    text == "cfg(test)" || text.starts_with("cfg(all(test,")
}

/// Skips an item, a statement, a field or an arm. Only an item has commas outside of brackets, among its
/// generics, and only a `use` has braces that do not end it.
pub(crate) fn past_item(tokens: &[TokenTree], mut at: usize) -> usize {
    let before_keyword = |token: &&TokenTree| match token {
        TokenTree::Ident(word) => ["pub", "async", "unsafe", "extern"].iter().any(|before| word == before),
        TokenTree::Punct(punct) => punct.as_char() == '#',
        TokenTree::Group(_) | TokenTree::Literal(_) => true,
    };
    let keyword = tokens.iter().skip(at).find(|token| !before_keyword(token)).map(ToString::to_string);
    let keyword = keyword.as_deref().unwrap_or_default();
    let is_use = keyword == "use";
    let is_item = ITEMS.contains(&keyword) || ["impl", "mod", "use"].contains(&keyword);
    while let Some(token) = tokens.get(at) {
        at += 1;
        match token {
            TokenTree::Punct(punct) if punct.as_char() == ';' => break,
            TokenTree::Punct(punct) if punct.as_char() == ',' && !is_item => break,
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace && !is_use => break,
            _ => {}
        }
    }
    at
}
