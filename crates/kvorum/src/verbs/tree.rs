//! `tree`: keys as paths, whose parts end with a slash.
//!
//! Keys come in their order and nothing is kept but the path to the last one, so that their number does not matter.
//! A key and the directory of the same name (`a` and `a/…`) are two lines.

use std::ffi::OsString;
use std::io::Write;

use clap::Args;
use kvorum_client::prefix_range;
use kvorum_client::proto::etcd::RangeRequest;
use serde_json::json;

use super::kv::pages;
use super::record::ExportLine;
use super::{ClientArgs, Output, TIMEOUT, bytes};
use crate::failure::Failure;

/// Arguments of `tree`.
#[derive(Args)]
pub struct TreeArgs {
    /// Only keys that start with this
    #[arg(default_value = "")]
    prefix: OsString,
    /// Ask only the server at hand, which may be behind
    #[arg(long)]
    serializable: bool,
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Prints keys as a tree.
pub async fn run(args: TreeArgs) -> Result<(), Failure> {
    let client = args.client.client(TIMEOUT)?;
    let (key, range_end) = prefix_range(&bytes(args.prefix));
    let request = RangeRequest {
        key,
        range_end,
        keys_only: true,
        serializable: args.serializable,
        ..Default::default()
    };
    let mut out = Output::start();
    let mut tree = Tree::new(args.client.json());
    pages(&client, request, None, |page| match page.first_of {
        Some((revision, _)) => tree
            .begin(&mut out, revision)
            .and_then(|()| tree.keys(&mut out, page.kvs)),
        None => tree.keys(&mut out, page.kvs),
    })
    .await?;
    tree.end(&mut out)?;
    out.end()
}

/// `a/`, `b/`, `c` of `a/b/c`.
fn parts(key: &[u8]) -> Vec<&[u8]> {
    key.split_inclusive(|byte| *byte == b'/').collect()
}

/// The way down to the last key.
struct Tree {
    json: bool,
    directories: Vec<Vec<u8>>,
    /// Whether something stands before the next one in its list.
    follows: bool,
}

impl Tree {
    fn new(json: bool) -> Self {
        Tree {
            json,
            directories: Vec::new(),
            follows: false,
        }
    }

    fn begin(&mut self, out: &mut impl Write, revision: i64) -> Result<(), Failure> {
        if self.json {
            write!(out, "{{\"revision\":{revision},\"children\":[")?;
        }
        Ok(())
    }

    fn keys(
        &mut self,
        out: &mut impl Write,
        kvs: &[kvorum_client::proto::mvcc::KeyValue],
    ) -> Result<(), Failure> {
        kvs.iter().try_for_each(|kv| self.key(out, &kv.key))
    }

    fn key(&mut self, out: &mut impl Write, key: &[u8]) -> Result<(), Failure> {
        let parts = parts(key);
        let (name, above) = parts.split_last().expect("no key is empty");
        let shared = above
            .iter()
            .zip(&self.directories)
            .take_while(|(a, b)| *a == b)
            .count();
        self.leave(out, shared)?;
        for directory in &above[shared..] {
            self.entry(out, directory)?;
            if self.json {
                out.write_all(b",\"children\":[")?;
            }
            self.directories.push(directory.to_vec());
            self.follows = false;
        }
        self.entry(out, name)?;
        if self.json {
            out.write_all(b"}")?;
        }
        self.follows = true;
        Ok(())
    }

    /// One name, in JSON the beginning of its object.
    fn entry(&mut self, out: &mut impl Write, name: &[u8]) -> Result<(), Failure> {
        let depth = self.directories.len();
        if !self.json {
            write!(out, "{:width$}", "", width = 2 * depth)?;
            out.write_all(name)?;
            return Ok(out.write_all(b"\n")?);
        }
        let ExportLine { key, key_b64, .. } = ExportLine::new(name, b"");
        let name = match key {
            Some(name) => format!("\"name\":{}", json!(name)),
            None => format!("\"name_b64\":{}", json!(key_b64)),
        };
        let comma = if self.follows { "," } else { "" };
        Ok(write!(out, "{comma}\n{:width$}{{{name}", "", width = 2 * depth)?)
    }

    /// Closes what is deeper than `depth`.
    fn leave(&mut self, out: &mut impl Write, depth: usize) -> Result<(), Failure> {
        while self.directories.len() > depth {
            self.directories.pop();
            if self.json {
                out.write_all(b"]}")?;
            }
            self.follows = true;
        }
        Ok(())
    }

    fn end(&mut self, out: &mut impl Write) -> Result<(), Failure> {
        self.leave(out, 0)?;
        if self.json {
            out.write_all(b"]}\n")?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn drawn(keys: &[&[u8]], json: bool) -> String {
        let (mut out, mut tree) = (Vec::new(), Tree::new(json));
        tree.begin(&mut out, 7).unwrap();
        keys.iter().try_for_each(|key| tree.key(&mut out, key)).unwrap();
        tree.end(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn trees() {
        let check = |keys: &[&[u8]], expected: &str| assert_eq!(drawn(keys, false), expected);
        check(&[], "");
        check(&[b"a"], "a\n");
        check(
            &[b"a", b"a/b", b"a/b/c", b"a/b/d", b"a/e", b"f/g/h", b"i"],
            "a\na/\n  b\n  b/\n    c\n    d\n  e\nf/\n  g/\n    h\ni\n",
        );
        check(&[b"/r/p", b"/r/q/"], "/\n  r/\n    p\n    q/\n");
        check(&[b"//"], "/\n  /\n");
    }

    #[test]
    fn trees_in_json() {
        let keys: [&[u8]; 5] = [b"a", b"a/b", b"a/c/\"", b"d/\xff", b"e"];
        let text = drawn(&keys, true);
        let tree: serde_json::Value = serde_json::from_str(&text).unwrap();
        let expected = serde_json::json!({"revision": 7, "children": [
            {"name": "a"},
            {"name": "a/", "children": [{"name": "b"}, {"name": "c/", "children": [{"name": "\""}]}]},
            {"name": "d/", "children": [{"name_b64": "/w=="}]},
            {"name": "e"},
        ]});
        assert_eq!(tree, expected, "{text}");
        let empty: serde_json::Value = serde_json::from_str(&drawn(&[], true)).unwrap();
        assert_eq!(empty, serde_json::json!({"revision": 7, "children": []}));
    }
}
