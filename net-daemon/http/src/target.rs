//! What a request line asks for: a path, and perhaps a query.

/// A request's target (RFC 9112, section 3.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    path: String,
    query: Option<String>,
}

impl Target {
    /// Of the request line's second word. From an absolute URI it takes what is behind the authority; in a
    /// form that only proxies are asked in, the path is empty. Clients do not send fragments: one that comes
    /// is cut off. `None` for what no URI has, even if one is generous.
    pub(crate) fn parse(target: &str) -> Option<Target> {
        if target.contains(['<', '>', '`']) {
            return None;
        }
        let target = target.split_once('#').map_or(target, |(before, _)| before);
        let origin = match target.split_once("://") {
            _ if target.starts_with('/') || target == "*" => target,
            Some((_, rest)) => rest.find(['/', '?']).map_or("/", |start| &rest[start..]),
            None => "",
        };
        let (path, query) = match origin.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (origin, None),
        };
        let path = if path.is_empty() && query.is_some() { "/" } else { path };
        Some(Target { path: path.to_owned(), query })
    }

    /// The path as it is on the wire, percent-encoded. It begins with a slash, or is `*`, or empty where a
    /// proxy is asked.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What is behind the question mark, if there is one; as it is on the wire.
    pub fn query(&self) -> Option<&str> {
        self.query.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_has_its_path() {
        for (target, path, query) in [
            ("/", "/", None),
            ("/a/b%2Fc", "/a/b%2Fc", None),
            ("/a?", "/a", Some("")),
            ("/a?b=c?d", "/a", Some("b=c?d")),
            ("/a#b", "/a", None),
            ("/a?b#c", "/a", Some("b")),
            ("/a://b", "/a://b", None),
            ("//a", "//a", None),
            ("*", "*", None),
            ("http://host/a/b?c", "/a/b", Some("c")),
            ("http://host", "/", None),
            ("http://host?a", "/", Some("a")),
            ("host:1", "", None),
        ] {
            let parsed = Target::parse(target).unwrap();
            assert_eq!((parsed.path(), parsed.query()), (path, query), "{target}");
        }
        assert_eq!(Target::parse("/a<b"), None);
    }
}
