//! The target of a request: a path, and perhaps a query.

/// A request's target (RFC 9112, section 3.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    path: String,
    query: Option<String>,
}

impl Target {
    /// Parses the second word of a request line. Takes the part after the authority of an absolute URI. The
    /// path is empty for forms that are for proxies only. Cuts off a fragment, which clients do not send.
    /// Returns `None` for characters that no URI contains.
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

    /// Returns the path as it is on the wire, percent-encoded. It begins with a slash, is `*`, or is empty
    /// for a form for proxies.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns the part after the question mark as it is on the wire, if there is one.
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
