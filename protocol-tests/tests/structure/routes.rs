//! Checks that HTTP requests in pages exist in `docs/reference/openapi.json`. Tests of volt-vmm compare that
//! file with the API.

use std::fs;

use serde_json::Value;

use super::pages::pages;
use protocol_tests::lab::repository;

const METHODS: [&str; 6] = ["GET", "PUT", "POST", "DELETE", "PATCH", "HEAD"];

/// Returns the methods and paths in a text, written as `PUT /v1/pause` or as a `curl` command.
fn requests(text: &str) -> Vec<(String, String)> {
    let mut requests = Vec::new();
    for line in text.replace("\\\n", " ").lines() {
        let words: Vec<_> =
            line.split_whitespace().map(|word| word.trim_matches(['\'', '"', ',', '.'])).collect();
        let after =
            |option: &str| words.iter().position(|word| *word == option).and_then(|at| words.get(at + 1));
        for pair in words.windows(2).filter(|pair| METHODS.contains(&pair[0]) && pair[1].starts_with('/')) {
            requests.push((pair[0].to_owned(), pair[1].to_owned()));
        }
        for path in words.iter().filter_map(|word| word.strip_prefix("http://localhost/")) {
            let method = after("-X").map_or("GET", |method| *method);
            requests.push((method.to_owned(), format!("/{path}")));
        }
    }
    requests
}

/// Reports whether `document` has the request. Any name matches `{name}`.
fn is_known(document: &Value, method: &str, path: &str) -> bool {
    let fits = |template: &str| {
        let (template, path): (Vec<_>, Vec<_>) = (template.split('/').collect(), path.split('/').collect());
        let same =
            |(wanted, found): (&&str, &&str)| wanted == found || *wanted == "{name}" && !found.is_empty();
        template.len() == path.len() && template.iter().zip(&path).all(same)
    };
    let paths = document["paths"].as_object().expect("paths");
    paths.iter().any(|(template, item)| fits(template) && item.get(method.to_lowercase()).is_some())
}

fn document() -> Value {
    let path = repository().join("docs/reference/openapi.json");
    serde_json::from_slice(&fs::read(path).expect("the API's schema")).expect("JSON")
}

#[test]
fn requests_in_pages_are_those_of_the_api() {
    let document = document();
    let (mut said, mut seen) = (String::new(), 0);
    for page in pages() {
        for (line, text) in page.code.iter().chain(&page.commands) {
            for (method, path) in requests(text) {
                seen += 1;
                if !is_known(&document, &method, &path) {
                    said += &format!("{}: the API has no {method} {path}\n", page.place(*line));
                }
            }
        }
    }
    assert!(said.is_empty(), "{said}");
    assert!(seen > 15, "only {seen} requests were seen");
}

#[test]
fn requests_that_the_api_has_not_are_found() {
    let text =
        "curl --unix-socket S -X PUT -d '{}' \\\n  http://localhost/v1/net/tap0/limits\n`GET /v1/pause`.";
    let found = requests(&text.replace('`', ""));
    let known: Vec<_> = found.iter().map(|(method, path)| is_known(&document(), method, path)).collect();
    assert_eq!((found.len(), known), (2, vec![true, false]), "{found:?}");
}
