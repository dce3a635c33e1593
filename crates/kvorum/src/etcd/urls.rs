//! URLs as etcd takes them for peers and clients.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use kvorum_server::Address;

/// How a URL is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scheme {
    Http,
    Https,
    Unix,
    Unixs,
}

impl Scheme {
    const ALL: [(&'static str, Scheme); 4] = [
        ("http", Scheme::Http),
        ("https", Scheme::Https),
        ("unix", Scheme::Unix),
        ("unixs", Scheme::Unixs),
    ];

    /// Whether it is encrypted.
    pub fn is_tls(self) -> bool {
        matches!(self, Scheme::Https | Scheme::Unixs)
    }
}

/// One URL: its scheme and what stands behind it, as it was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Url {
    text: String,
    pub scheme: Scheme,
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Url {
    /// Parses one, in etcd's words.
    fn parse(text: &str) -> Result<Url, String> {
        let text = text.trim();
        let (scheme, rest) = text
            .split_once("://")
            .and_then(|(scheme, rest)| {
                let known = Scheme::ALL
                    .iter()
                    .find(|(name, _)| scheme.eq_ignore_ascii_case(name));
                Some((known?.1, rest))
            })
            .ok_or_else(|| format!("URL scheme must be http, https, unix, or unixs: {text}"))?;
        if matches!(scheme, Scheme::Http | Scheme::Https) {
            let (host, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
            let colons = host.rsplit_once(':').filter(|(host, _)| {
                let is_bare = !host.contains(':');
                is_bare || (host.starts_with('[') && host.ends_with(']'))
            });
            if colons.is_none() {
                return Err(format!(
                    "URL address does not have the form \"host:port\": {text}"
                ));
            }
            if !path.is_empty() {
                return Err(format!("URL must not contain a path: {text}"));
            }
        } else if rest.is_empty() {
            return Err(format!("URL names no socket: {text}"));
        }
        Ok(Url {
            text: text.to_owned(),
            scheme,
        })
    }

    fn rest(&self) -> &str {
        self.text.split_once("://").map_or("", |(_, rest)| rest)
    }

    /// The host and port of an http URL.
    ///
    /// # Errors
    /// One line: the host is none, or the port.
    pub fn address(&self) -> Result<Address, String> {
        self.rest()
            .parse()
            .map_err(|_| format!("URL address does not have the form \"host:port\": {self}"))
    }

    /// Where to listen: an IP, `localhost`, or every interface.
    ///
    /// # Errors
    /// A name, as in etcd.
    pub fn bind_address(&self) -> Result<Address, String> {
        let (host, port) = self.rest().rsplit_once(':').expect("checked when it was parsed");
        if host.is_empty() {
            // As Go has it: every interface.
            return format!("*:{port}")
                .parse()
                .map_err(|_| format!("invalid port in {self}"));
        }
        let address = self.address()?;
        if address.host != "localhost" && address.host.parse::<IpAddr>().is_err() {
            return Err(format!("expected IP in URL for binding ({self})"));
        }
        Ok(address)
    }

    /// The path of a socket in the file system.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(self.rest())
    }
}

/// URLs with commas between, sorted, each once.
///
/// # Errors
/// The first that is none, in etcd's words.
pub fn parse_list(text: &str) -> Result<Vec<Url>, String> {
    let mut urls = text.split(',').map(Url::parse).collect::<Result<Vec<_>, _>>()?;
    urls.sort();
    urls.dedup();
    Ok(urls)
}

/// `name=url,...` as etcd reads it: a name may have several URLs.
///
/// # Errors
/// The first URL that is none.
pub fn parse_cluster(text: &str) -> Result<Vec<(String, Vec<Url>)>, String> {
    let mut members: Vec<(String, Vec<Url>)> = Vec::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (name, url) = part.split_once('=').unwrap_or((part, ""));
        let url = Url::parse(url)?;
        match members.iter_mut().find(|(known, _)| known == name) {
            Some((_, urls)) => urls.push(url),
            None => members.push((name.to_owned(), vec![url])),
        }
    }
    for (_, urls) in &mut members {
        urls.sort();
    }
    Ok(members)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_as_etcd_reads_them() {
        let shown = |text: &str| -> Result<Vec<String>, String> {
            Ok(parse_list(text)?.iter().map(ToString::to_string).collect())
        };
        assert_eq!(
            shown("http://b:2, http://a:1,http://b:2").unwrap(),
            ["http://a:1", "http://b:2"]
        );
        for good in [
            "http://[::1]:2379",
            "unix:///tmp/a.sock",
            "unix://localhost:1",
            "https://h:1",
            "http://:1",
        ] {
            assert!(shown(good).is_ok(), "{good}");
        }
        for (bad, part) in [
            ("", "URL scheme must be"),
            ("h:1", "URL scheme must be"),
            ("ftp://h:1", "URL scheme must be"),
            ("http://h", "does not have the form"),
            ("http://::1:2379", "does not have the form"),
            ("http://h:1/", "must not contain a path"),
            ("http://h:1/x", "must not contain a path"),
            ("unix://", "names no socket"),
        ] {
            let why = shown(bad).unwrap_err();
            assert!(why.contains(part), "{bad}: {why}");
        }
    }

    #[test]
    fn one_binds_addresses_not_names() {
        let bind = |text: &str| Url::parse(text).unwrap().bind_address().map(|a| a.to_string());
        assert_eq!(bind("http://localhost:2379").unwrap(), "localhost:2379");
        assert_eq!(bind("http://0.0.0.0:1").unwrap(), "0.0.0.0:1");
        assert_eq!(bind("http://[::]:1").unwrap(), "[::]:1");
        assert_eq!(bind("http://:1").unwrap(), "*:1");
        let refused = bind("http://example.com:1").unwrap_err();
        assert_eq!(refused, "expected IP in URL for binding (http://example.com:1)");
        assert!(bind("http://127.0.0.1:99999").is_err());
    }

    #[test]
    fn a_member_may_have_several_urls() {
        let members = parse_cluster("b=http://b:2,a=http://a:2,a=http://a:1,").unwrap();
        assert_eq!(members.len(), 2);
        let urls: Vec<String> = members[1].1.iter().map(ToString::to_string).collect();
        assert_eq!(
            (members[1].0.as_str(), urls.join(" ")),
            ("a", "http://a:1 http://a:2".into())
        );
        assert!(parse_cluster("a").is_err());
    }
}
