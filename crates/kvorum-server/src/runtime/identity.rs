//! Who this member is: the file `identity` in its data directory.
//!
//! Written before anything else in a new directory, replaced durably when the cluster's UUID becomes known.
//! Plain lines, so that a person can read it; a checksum over them, so that nobody trusts a damaged one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::Path;

use kvorum_wal::disk::{Disk, read_file, replace_file_durably};
use sha2::{Digest, Sha256};

use crate::options::{Founder, ServeOptions};

const FORMAT: &str = "kvorum-identity 1";
const FILE: &str = "identity";
const FILE_BYTES_MAX: usize = 64 * 1024;

/// A member's identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The member's ID, never 0.
    pub member: u64,
    /// Its name.
    pub name: String,
    /// The cluster's token.
    pub token: String,
    /// First 16 bytes of the hash of token and founders; tells clusters apart until the UUID is known.
    pub token_hash: u128,
    /// The cluster's UUID; 0 until its first leader gave it one.
    pub cluster_uuid: u128,
    /// Random, made with the directory.
    pub incarnation: u128,
    /// The founders' IDs; empty for a member that joined later.
    pub founders: Vec<u64>,
    /// Whether the member's log was made. With it set, a missing log is lost data, never a beginning.
    pub started: bool,
}

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The disk.
    #[error("cannot read or write the file identity: {0}; check the directory's permissions and free space")]
    Io(#[from] io::Error),
    /// Damaged.
    #[error("the file identity is damaged ({0}); restore it from a copy, or replace this member")]
    Damaged(String),
    /// A newer format.
    #[error("the file identity has format `{0}`, newer than this kvorum: upgrade this member")]
    Newer(String),
}

/// The ID of a founder: the first 8 bytes of SHA-256("kvorum", token, name), the latter two with their lengths
/// as little-endian u64 before them; 0 becomes 1.
pub fn founder_id(token: &str, name: &str) -> u64 {
    let mut hash = Sha256::new();
    hash.update(b"kvorum");
    for part in [token, name] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    first_8(&hash.finalize()).max(1)
}

/// The founders that the options name, by ID.
pub(crate) fn founders_by_id(options: &ServeOptions) -> BTreeMap<u64, Founder> {
    let founders = options.founders().into_iter();
    founders
        .map(|founder| {
            (
                id_of_founder(options, &options.cluster_token, &founder.name),
                founder,
            )
        })
        .collect()
}

/// Their names, by ID.
pub(crate) fn founder_names(options: &ServeOptions) -> BTreeMap<u64, String> {
    let founders = founders_by_id(options).into_iter();
    founders.map(|(id, founder)| (id, founder.name)).collect()
}

/// etcd's ID of a member: the first 8 bytes of SHA-1(sorted peer URLs, cluster token and, of a member that was added
/// later, Unix seconds in decimal), one after the other; 0 becomes 1. etcd leaves the token out where it adds one.
pub(crate) fn etcd_member_id(peer_urls: &[String], token: &str, added_at_s: Option<u64>) -> u64 {
    let mut urls = peer_urls.to_vec();
    urls.sort();
    let time = added_at_s.map_or(String::new(), |seconds| seconds.to_string());
    first_8(&sha1::Sha1::digest(
        [urls.concat().as_str(), token, &time].concat(),
    ))
    .max(1)
}

/// etcd's ID of a cluster: the first 8 bytes of SHA-1(sorted founder IDs, big-endian).
pub(crate) fn etcd_cluster_id(founders: &[u64]) -> u64 {
    let mut founders = founders.to_vec();
    founders.sort_unstable();
    let bytes: Vec<u8> = founders.iter().flat_map(|id| id.to_be_bytes()).collect();
    first_8(&sha1::Sha1::digest(bytes))
}

fn first_8(hash: &[u8]) -> u64 {
    u64::from_be_bytes(hash[..8].try_into().expect("a SHA has at least 20 bytes"))
}

/// The ID of a founder by the rule that the options name.
pub(crate) fn id_of_founder(options: &ServeOptions, token: &str, name: &str) -> u64 {
    match &options.etcd.identity {
        Some(known) => etcd_member_id(known.urls(name), token, None),
        None => founder_id(token, name),
    }
}

/// [`token_hash`] by the rule that the options name: its first half is what the cluster's ID is.
pub(crate) fn hash_of_founders(options: &ServeOptions, token: &str, founders: &[u64]) -> u128 {
    let hash = token_hash(token, founders);
    match options.etcd.identity {
        Some(_) => u128::from(etcd_cluster_id(founders)) << 64 | hash & u128::from(u64::MAX),
        None => hash,
    }
}

/// What stands for the cluster until its UUID is known: a hash of token and sorted founder IDs.
pub fn token_hash(token: &str, founders: &[u64]) -> u128 {
    let mut founders = founders.to_vec();
    founders.sort_unstable();
    let mut hash = Sha256::new();
    hash.update(b"kvorum-cluster");
    hash.update((token.len() as u64).to_le_bytes());
    hash.update(token.as_bytes());
    for id in founders {
        hash.update(id.to_le_bytes());
    }
    let bytes = hash.finalize();
    u128::from_be_bytes(bytes[..16].try_into().expect("a SHA-256 has 32 bytes"))
}

impl Identity {
    /// The identity in `dir`, if there is one.
    pub fn load<D: Disk>(disk: &D, dir: &Path) -> Result<Option<Identity>, IdentityError> {
        match read_file(disk, &dir.join(FILE), FILE_BYTES_MAX)? {
            Some(bytes) => Self::parse(&bytes).map(Some),
            None => Ok(None),
        }
    }

    /// Writes it durably.
    pub fn store<D: Disk>(&self, disk: &D, dir: &Path) -> Result<(), IdentityError> {
        Ok(replace_file_durably(
            disk,
            &dir.join(FILE),
            self.print().as_bytes(),
        )?)
    }

    /// What the core calls the cluster, constant for its life.
    pub fn cluster_id(&self) -> u64 {
        (self.token_hash >> 64) as u64
    }

    /// What the log is marked with: a log of another member or directory is not opened.
    pub fn log_mark(&self) -> [u8; 40] {
        let mut mark = [0; 40];
        mark[..16].copy_from_slice(&self.token_hash.to_le_bytes());
        mark[16..24].copy_from_slice(&self.member.to_le_bytes());
        mark[24..].copy_from_slice(&self.incarnation.to_le_bytes());
        mark
    }

    fn print(&self) -> String {
        let mut text = String::new();
        let founders: Vec<String> = self.founders.iter().map(|id| format!("{id:016x}")).collect();
        let lines = [
            FORMAT.to_owned(),
            format!("member {:016x}", self.member),
            format!("name {}", self.name),
            format!("token {}", self.token),
            format!("token-hash {:032x}", self.token_hash),
            format!("cluster {:032x}", self.cluster_uuid),
            format!("incarnation {:032x}", self.incarnation),
            format!("founders {}", founders.join(",")),
            format!("started {}", if self.started { "yes" } else { "no" }),
        ];
        for line in lines {
            text.push_str(&line);
            text.push('\n');
        }
        let checksum = crc32c::crc32c(text.as_bytes());
        writeln!(text, "checksum {checksum:08x}").expect("writing to a String cannot fail");
        text
    }

    fn parse(bytes: &[u8]) -> Result<Identity, IdentityError> {
        let damaged = |why: &str| IdentityError::Damaged(why.to_owned());
        let text = std::str::from_utf8(bytes).map_err(|_| damaged("not text"))?;
        let first = text.lines().next().unwrap_or_default();
        if first != FORMAT && first.starts_with("kvorum-identity ") {
            return Err(IdentityError::Newer(first.to_owned()));
        }
        let (body, checksum) = text
            .rsplit_once("checksum ")
            .ok_or_else(|| damaged("no checksum"))?;
        let written = u32::from_str_radix(checksum.trim_end(), 16).map_err(|_| damaged("no checksum"))?;
        if written != crc32c::crc32c(body.as_bytes()) {
            return Err(damaged("wrong checksum"));
        }
        let field = |name: &str| {
            let prefix = format!("{name} ");
            let line = body.lines().find_map(|line| line.strip_prefix(prefix.as_str()));
            line.ok_or_else(|| damaged(&format!("no {name}")))
        };
        let hex = |name: &str| u128::from_str_radix(field(name)?, 16).map_err(|_| damaged(name));
        let founders = field("founders")?.split(',').filter(|id| !id.is_empty());
        let founders = founders.map(|id| u64::from_str_radix(id, 16).map_err(|_| damaged("founders")));
        Ok(Identity {
            member: u64::try_from(hex("member")?).map_err(|_| damaged("member"))?,
            name: field("name")?.to_owned(),
            token: field("token")?.to_owned(),
            token_hash: hex("token-hash")?,
            cluster_uuid: hex("cluster")?,
            incarnation: hex("incarnation")?,
            founders: founders.collect::<Result<_, _>>()?,
            started: match field("started")? {
                "yes" => true,
                "no" => false,
                _ => return Err(damaged("started")),
            },
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        let founders: Vec<u64> = ["a", "b", "c"].map(|name| founder_id("kvorum", name)).into();
        Identity {
            member: founders[0],
            name: "a".into(),
            token: "kvorum".into(),
            token_hash: token_hash("kvorum", &founders),
            cluster_uuid: 0,
            incarnation: u128::MAX / 3,
            founders,
            started: true,
        }
    }

    /// What etcd 3.6 says of `--initial-cluster infra1=…,infra2=…,infra3=…`, from its documentation and from a start of it.
    #[test]
    fn ids_by_etcds_rule() {
        let url = |port: u16| vec![format!("http://127.0.0.1:{port}")];
        let ids = [12380, 22380, 32380].map(|port| etcd_member_id(&url(port), "etcd-cluster-1", None));
        assert_eq!(
            ids.map(|id| format!("{id:x}")),
            ["8211f1d0f64f3269", "91bc3c398fb3c146", "fd422379fda50e48"]
        );
        assert_eq!(format!("{:x}", etcd_cluster_id(&ids)), "ef37ad9dc622a7c4");
        let alone = etcd_member_id(&["http://localhost:2380".to_owned()], "etcd-cluster", None);
        assert_eq!(format!("{alone:x}"), "8e9e05c52164694d");
        assert_eq!(format!("{:x}", etcd_cluster_id(&[alone])), "cdf818194e3a8c32");
        let two = ["http://b:1".to_owned(), "http://a:1".to_owned()];
        assert_ne!(
            etcd_member_id(&two, "", Some(1)),
            etcd_member_id(&two, "", Some(2))
        );
        assert_eq!(
            etcd_member_id(&two, "", Some(7)),
            etcd_member_id(&["http://a:1http://b:17".to_owned()], "", None)
        );
    }

    #[test]
    fn an_identity_survives_its_file() {
        let identity = identity();
        assert_eq!(Identity::parse(identity.print().as_bytes()).unwrap(), identity);
        let joined = Identity {
            founders: vec![],
            ..identity
        };
        assert_eq!(Identity::parse(joined.print().as_bytes()).unwrap(), joined);
    }

    #[test]
    fn every_damaged_byte_is_noticed() {
        let text = identity().print().into_bytes();
        for at in 0..text.len() - 1 {
            let mut damaged = text.clone();
            damaged[at] ^= 1;
            let read = Identity::parse(&damaged);
            // Letter case of the checksum's own digits is the one change that means the same.
            assert!(read.is_err() || read.unwrap() == identity(), "byte {at}");
        }
    }

    #[test]
    fn founders_agree_whatever_the_order_of_their_lists() {
        let ids = identity().founders;
        let reversed: Vec<u64> = ids.iter().rev().copied().collect();
        assert_eq!(token_hash("kvorum", &ids), token_hash("kvorum", &reversed));
        assert_ne!(founder_id("kvorum", "ab"), founder_id("kvoruma", "b"));
    }
}
