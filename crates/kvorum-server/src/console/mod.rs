//! The web console: the files of `console/`, embedded as they are, and the list of members that the page asks for.
//!
//! A member serves it under [`PATH`] on its client port; [`ui`] serves the same files by
//! themselves.

pub mod ui;

use std::collections::BTreeMap;

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderName, HeaderValue, Method, Response, StatusCode};
use http_body_util::Full;
use kvorum_node::NodeStatus;
use serde::{Deserialize, Serialize};
use tonic::body::Body;

use crate::handle::ReplicaHandle;
use crate::names::member_name;
use crate::routes::plain;

/// Where a member serves it.
pub const PATH: &str = "/console/";
/// What the page asks for, beside its files.
pub const CONFIG: &str = "config.json";

/// Only what is embedded here runs and is shown; the page calls members wherever they are.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src *; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

macro_rules! files {
    ($($path:literal as $kind:expr,)*) => {
        &[$(($path, $kind, include_bytes!(concat!("../../../../console/", $path)).as_slice()),)*]
    };
}

/// Path below the console's, type, content.
const FILES: &[(&str, &str, &[u8])] = files![
    "index.html" as HTML,
    "app.js" as SCRIPT,
    "member.js" as SCRIPT,
    "style.css" as "text/css; charset=utf-8",
    "icon.svg" as "image/svg+xml",
    "vendor/preact.mjs" as SCRIPT,
    "vendor/htm.mjs" as SCRIPT,
    "vendor/LICENSE-preact" as PLAIN,
    "vendor/LICENSE-htm" as PLAIN,
];

/// A member as the page shows and calls it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// Its name.
    pub name: String,
    /// `host:port`, to be read by people.
    pub address: String,
    /// What goes before a path of this member: nothing, a URL, or the path of a proxy.
    pub base: String,
}

/// Answers for a path below the console's; the empty one is the page. `None`: there is no such file.
pub fn file(path: &str) -> Option<Response<Body>> {
    let path = if path.is_empty() { "index.html" } else { path };
    let (_, kind, content) = FILES.iter().find(|(name, ..)| *name == path)?;
    let mut response = Response::new(Body::new(Full::new(Bytes::from_static(content))));
    let headers: [(HeaderName, &'static str); 5] = [
        (CONTENT_TYPE, kind),
        // A new version of the program must not meet parts of the old page.
        (CACHE_CONTROL, "no-cache"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    for (name, value) in headers {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    Some(response)
}

/// The answer to [`CONFIG`].
pub fn config(members: &[Shown]) -> Response<Body> {
    let body = serde_json::json!({ "members": members }).to_string();
    let mut response = Response::new(Body::new(Full::new(Bytes::from(body))));
    for (name, value) in [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")] {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}

/// What a member answers under [`PATH`]; `None` if the path is not the console's. `host` is what the browser calls
/// this member.
pub(crate) fn answer(
    handle: &ReplicaHandle,
    method: &Method,
    path: &str,
    host: Option<&str>,
) -> Option<Response<Body>> {
    let is_door = matches!(path, "/" | "/console");
    let below = path.strip_prefix(PATH);
    if !is_door && below.is_none() {
        return None;
    }
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut response = plain(405, "only GET is served here\n");
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Some(response);
    }
    Some(match below {
        None => {
            let mut response = plain(303, "the console is at /console/\n");
            response
                .headers_mut()
                .insert(http::header::LOCATION, HeaderValue::from_static(PATH));
            response
        }
        Some(CONFIG) => {
            let founders = &handle.identity().founders;
            config(&members(&handle.status(), founders, host.unwrap_or_default()))
        }
        Some(path) => file(path)
            .unwrap_or_else(|| plain(StatusCode::NOT_FOUND.as_u16(), "no such file of the console\n")),
    })
}

/// All members by name, this one under the address that the browser used for it.
fn members(status: &NodeStatus, founders: &BTreeMap<u64, String>, host: &str) -> Vec<Shown> {
    let shown = |id: u64| {
        let url = status
            .cluster
            .members
            .get(&id)
            .and_then(|record| record.client_urls.first())
            .map_or("", |url| url.trim_end_matches('/'));
        let address = url.split_once("://").map_or(url, |(_, address)| address);
        Shown {
            name: member_name(status, founders, id),
            address: if id == status.id { host } else { address }.to_owned(),
            base: if id == status.id { "" } else { url }.to_owned(),
        }
    };
    let ids = status.configuration.members();
    let others = ids.iter().copied().filter(|id| *id != status.id).map(shown);
    // A member that has not said its address yet cannot be called.
    let reachable = others.filter(|member| !member.base.is_empty());
    let mut all: Vec<Shown> = std::iter::once(shown(status.id)).chain(reachable).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A file that the page names and the program does not embed would only be missed in a browser.
    #[test]
    fn every_file_of_the_console_is_embedded() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../console");
        let mut found = Vec::new();
        for directory in ["", "vendor/"] {
            for entry in std::fs::read_dir(format!("{root}/{directory}")).unwrap() {
                let entry = entry.unwrap();
                let name = format!("{directory}{}", entry.file_name().into_string().unwrap());
                if entry.file_type().unwrap().is_file() && name != "README.md" {
                    found.push(name);
                }
            }
        }
        found.sort();
        let mut embedded: Vec<_> = FILES.iter().map(|(name, ..)| (*name).to_owned()).collect();
        embedded.sort();
        assert_eq!(embedded, found);
    }

    #[test]
    fn files_by_path() {
        assert_eq!(file("").unwrap().headers()[CONTENT_TYPE], HTML);
        assert_eq!(file("vendor/htm.mjs").unwrap().headers()[CONTENT_TYPE], SCRIPT);
        for absent in ["/", "..", "vendor/", "vendor/../index.html", "README.md"] {
            assert!(file(absent).is_none(), "{absent}");
        }
    }
}
