//! Every REST route. `openapi.json` beside this file describes the same ones: a test compares the two.

/// What answers a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    KvGet,
    KvSet,
    KvDelete,
    RaftInfo,
    KeyCreate,
    KeyGet,
    KeyDelete,
    Hello,
    RegisterFollower,
    Batch,
    Health,
    Livez,
    Readyz,
    Status,
    Version,
    Metrics,
    DebugVars,
    OpenApi,
    Gateway,
}

impl Endpoint {
    /// Whether its errors are lines of text: those of "dist-kv-store" are.
    pub(super) fn answers_in_text(self) -> bool {
        use Endpoint::*;
        matches!(self, KeyCreate | KeyGet | KeyDelete | Hello | RegisterFollower)
    }

    /// Whether it is a route of etcd's beside its gateway: what is not there, or not with this method, is told there in
    /// lines of text.
    pub(super) fn is_of_etcd(self) -> bool {
        use Endpoint::*;
        matches!(self, Health | Livez | Readyz | Version | Metrics | DebugVars)
    }

    /// Whether pages of other origins call it: the console's and that of "raft-kv".
    pub(super) fn is_for_pages(self) -> bool {
        use Endpoint::*;
        matches!(self, KvGet | KvSet | KvDelete | RaftInfo | Status | Gateway)
    }
}

/// Method, path and what answers. `{…}` at the end of a path stands for all that follows, slashes included. HEAD
/// is answered wherever GET is.
pub(super) const TABLE: &[(&str, &str, Endpoint)] = &[
    ("GET", "/kv/{key}", Endpoint::KvGet),
    ("DELETE", "/kv/{key}", Endpoint::KvDelete),
    ("POST", "/kv", Endpoint::KvSet),
    ("GET", "/raft/info", Endpoint::RaftInfo),
    ("GET", "/key/{id}", Endpoint::KeyGet),
    ("DELETE", "/key/{id}", Endpoint::KeyDelete),
    ("POST", "/key", Endpoint::KeyCreate),
    ("GET", "/hello", Endpoint::Hello),
    ("POST", "/register-follower", Endpoint::RegisterFollower),
    ("POST", "/batch", Endpoint::Batch),
    ("GET", "/status", Endpoint::Status),
    ("GET", "/health", Endpoint::Health),
    ("GET", "/livez", Endpoint::Livez),
    ("GET", "/livez/{check}", Endpoint::Livez),
    ("GET", "/readyz", Endpoint::Readyz),
    ("GET", "/readyz/{check}", Endpoint::Readyz),
    ("GET", "/version", Endpoint::Version),
    ("GET", "/metrics", Endpoint::Metrics),
    ("GET", "/debug/vars", Endpoint::DebugVars),
    ("GET", "/openapi.json", Endpoint::OpenApi),
    ("POST", "/v3/{method}", Endpoint::Gateway),
];

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found<'a> {
    /// To this endpoint, with what stands in place of `{…}`.
    Endpoint(Endpoint, &'a str),
    /// The path is known, but not with this method; and whose it is.
    OtherMethods(Endpoint),
    /// Nowhere.
    Nothing,
}

/// Looks a request up.
pub(super) fn find<'a>(method: &str, path: &'a str) -> Found<'a> {
    let method = if method == "HEAD" { "GET" } else { method };
    let mut found = Found::Nothing;
    for (route_method, template, endpoint) in TABLE {
        match parameter(template, path) {
            Some(parameter) if *route_method == method => return Found::Endpoint(*endpoint, parameter),
            Some(_) => found = Found::OtherMethods(*endpoint),
            None => {}
        }
    }
    found
}

/// The methods that a path takes, for `Allow`.
pub(super) fn methods(path: &str) -> String {
    let mut methods = Vec::new();
    for (method, template, _) in TABLE {
        if parameter(template, path).is_some() {
            methods.push(*method);
            if *method == "GET" {
                methods.push("HEAD");
            }
        }
    }
    methods.join(", ")
}

fn parameter<'a>(template: &str, path: &'a str) -> Option<&'a str> {
    match template.split_once('{') {
        Some((prefix, _)) => path.strip_prefix(prefix),
        None => (template == path).then_some(""),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn requests_find_their_endpoint() {
        let check = |method: &str, path: &str, expected| assert_eq!(find(method, path), expected, "{path}");
        check("GET", "/kv/a/b", Found::Endpoint(Endpoint::KvGet, "a/b"));
        check("HEAD", "/kv/", Found::Endpoint(Endpoint::KvGet, ""));
        check("DELETE", "/key/x", Found::Endpoint(Endpoint::KeyDelete, "x"));
        check("POST", "/key", Found::Endpoint(Endpoint::KeyCreate, ""));
        check("GET", "/readyz/", Found::Endpoint(Endpoint::Readyz, ""));
        check("PUT", "/key", Found::OtherMethods(Endpoint::KeyCreate));
        check("GET", "/keys", Found::Nothing);
        check("GET", "/livezz", Found::Nothing);
        assert_eq!(methods("/key/x"), "GET, HEAD, DELETE");
        assert_eq!(methods("/kv"), "POST");
    }

    #[test]
    fn the_openapi_document_has_these_routes_and_no_others() {
        let document: serde_json::Value = serde_json::from_str(crate::rest::OPENAPI).unwrap();
        assert!(document["openapi"].as_str().unwrap().starts_with("3."));
        let mut described = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                if method == "parameters" {
                    continue;
                }
                described.insert((method.to_uppercase(), path.clone()));
                let summary = operation["summary"].as_str();
                assert!(
                    summary.is_some_and(|text| !text.is_empty()),
                    "{method} {path} has no summary"
                );
                let responses = operation["responses"].as_object().unwrap();
                // Pages of other origins may read what the browser lets them, and write nowhere.
                let forbids = method == "get" || responses.contains_key("403");
                assert!(forbids, "{method} {path} does not say that pages are refused");
                assert!(
                    responses.keys().any(|code| code.starts_with('2')),
                    "{method} {path}"
                );
            }
            // Each parameter of the path is declared, on the path or on each of its operations.
            if let Some((_, name)) = path.split_once('{') {
                let name = name.trim_end_matches('}');
                let declared = item["parameters"].as_array().unwrap();
                assert!(
                    declared.iter().any(|p| p["name"] == name && p["in"] == "path"),
                    "{path}"
                );
            }
        }
        let served: BTreeSet<(String, String)> = TABLE
            .iter()
            .map(|(method, path, _)| ((*method).to_owned(), (*path).to_owned()))
            .collect();
        assert_eq!(described, served);
        check_references(&document, &document);
    }

    /// Every `$ref` leads somewhere.
    fn check_references(document: &serde_json::Value, at: &serde_json::Value) {
        match at {
            serde_json::Value::Object(fields) => {
                if let Some(target) = fields.get("$ref") {
                    let pointer = target.as_str().unwrap().strip_prefix('#').unwrap();
                    assert!(document.pointer(pointer).is_some(), "{target} is not there");
                }
                fields
                    .values()
                    .for_each(|value| check_references(document, value));
            }
            serde_json::Value::Array(items) => {
                items.iter().for_each(|value| check_references(document, value));
            }
            _ => {}
        }
    }
}
