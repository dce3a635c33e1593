//! Names and URLs: where a member listens, what it tells others, and who founds the cluster.

use std::net::{IpAddr, ToSocketAddrs, UdpSocket};
use std::path::PathBuf;

use kvorum_server::etcd_options::{Endpoint, EtcdIdentity, Listener, Serves};
use kvorum_server::runtime::is_initialized;
use kvorum_server::{Address, Founder, ServeOptions};

use super::flags::find;
use super::urls::{Scheme, Url, parse_cluster, parse_list};
use super::values::{Place, Values};

/// Members by name, with their peer URLs.
type Members = Vec<(String, Vec<Url>)>;

/// The URLs of a flag, none of them encrypted. An empty text is none, as in etcd: the default counts.
fn urls(values: &Values, name: &str) -> Result<Vec<Url>, String> {
    let default = find(name).map_or("", |flag| flag.default);
    let text = values
        .given(name)
        .filter(|text| !text.is_empty())
        .unwrap_or(default);
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let urls = parse_list(text).map_err(|why| format!("--{name}: {why}"))?;
    check_schemes(name, &urls)?;
    Ok(urls)
}

fn check_schemes(name: &str, urls: &[Url]) -> Result<(), String> {
    match urls.iter().find(|url| url.scheme.is_tls()) {
        Some(url) => Err(format!(
            "--{name}: {url}: TLS is not yet supported, write http://"
        )),
        None => Ok(()),
    }
}

/// The addresses that URLs of peers name.
fn peer_addresses(
    name: &str,
    urls: &[Url],
    of: impl Fn(&Url) -> Result<Address, String>,
) -> Result<Vec<Address>, String> {
    let address = |url: &Url| match url.scheme {
        Scheme::Http => of(url).map_err(|why| format!("--{name}: {why}")),
        _ => Err(format!(
            "--{name}: {url}: peers over sockets of the file system are not yet supported"
        )),
    };
    urls.iter().map(address).collect()
}

/// Where clients and peers are served.
pub fn sockets(values: &Values, serve: &mut ServeOptions) -> Result<(), String> {
    let listen = urls(values, "listen-client-urls")?;
    let http = urls(values, "listen-client-http-urls")?;
    if let Some(both) = listen.iter().find(|url| http.contains(url)) {
        return Err(format!(
            "cannot bind both --listen-client-urls and --listen-client-http-urls on the same url {both}"
        ));
    }
    let metrics = urls(values, "listen-metrics-urls")?;
    let first = if http.is_empty() {
        Serves::All
    } else {
        Serves::Grpc
    };
    serve.listen_client.clear();
    for (name, all, serves) in [
        ("listen-client-urls", &listen, first),
        ("listen-client-http-urls", &http, Serves::Http),
        ("listen-metrics-urls", &metrics, Serves::Metrics),
    ] {
        for url in all {
            let at = match url.scheme {
                Scheme::Unix | Scheme::Unixs => Endpoint::Unix(url.path()),
                Scheme::Http | Scheme::Https => {
                    Endpoint::Tcp(url.bind_address().map_err(|why| format!("--{name}: {why}"))?)
                }
            };
            match (at, serves) {
                (Endpoint::Tcp(address), Serves::All) => serve.listen_client.push(address),
                (at, serves) => serve.etcd.listeners.push(Listener { at, serves }),
            }
        }
    }
    let name = "listen-peer-urls";
    let mut peers = peer_addresses(name, &urls(values, name)?, Url::bind_address)?.into_iter();
    serve.listen_peer = peers.next().expect("there is a default");
    serve.etcd.listen_peer_also = peers.collect();
    serve.advertise_client = advertised(values, "advertise-client-urls", &listen[0])?
        .iter()
        .map(ToString::to_string)
        .collect();
    Ok(())
}

/// What is told to others: as given, or the default; where that is `localhost` and this member listens on every
/// interface, the address of the interface that leads to the others.
fn advertised(values: &Values, name: &str, listen: &Url) -> Result<Vec<Url>, String> {
    let is_explicit = matches!(
        values.place("listen-client-urls"),
        Some(Place::Flag | Place::Environment)
    );
    let given = values.given(name).filter(|text| !text.is_empty());
    if name == "advertise-client-urls" && is_explicit && given.is_none() {
        return Err(
            "--advertise-client-urls is required when --listen-client-urls is set explicitly".to_owned(),
        );
    }
    let urls = urls(values, name)?;
    let default = find(name).map_or("", |flag| flag.default);
    let is_default = given.is_none_or(|text| text == default);
    let bound = (listen.scheme == Scheme::Http)
        .then(|| listen.bind_address().ok())
        .flatten();
    if let Some(bound) = bound.filter(|bound| is_default && bound.host == "0.0.0.0")
        && let Some(host) = default_host()
    {
        return parse_list(&format!("http://{}", Address::new(host.to_string(), bound.port)));
    }
    for url in urls.iter().filter(|url| url.scheme == Scheme::Http) {
        url.address()
            .map_err(|why| format!("--{name} \"{url}\" must be \"host:port\" ({why})"))?;
    }
    Ok(urls)
}

/// The address of the interface that leads out of this machine. Nothing is sent to find it.
fn default_host() -> Option<IpAddr> {
    // A documentation address (RFC 5737): any route to it is the default one.
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback() && !ip.is_unspecified()).then_some(ip)
}

/// Who this member is, and with whom it founds a cluster or which one it joins.
pub fn membership(values: &Values, serve: &mut ServeOptions, notes: &mut Vec<String>) -> Result<(), String> {
    let name = match values.text("name") {
        "" => "default",
        name => name,
    };
    serve.name = name.to_owned();
    serve.data_dir = match values.given("data-dir").filter(|path| !path.is_empty()) {
        Some(path) => PathBuf::from(path),
        None => {
            notes.push(format!("'data-dir' was empty; using default {name}.etcd"));
            PathBuf::from(format!("{name}.etcd"))
        }
    };
    serve.log_dir = values
        .given("wal-dir")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from);
    serve.cluster_token = values.text("initial-cluster-token").to_owned();
    let listen = urls(values, "listen-peer-urls")?;
    let own = advertised(values, "initial-advertise-peer-urls", &listen[0])?;
    let own_addresses = peer_addresses("initial-advertise-peer-urls", &own, Url::address)?;
    let joins = match values.text("initial-cluster-state") {
        "new" | "" => false,
        "existing" => true,
        other => return Err(format!("unexpected clusterState {other:?}")),
    };
    let alone = || vec![(name.to_owned(), own.clone())];
    let is_known = is_initialized(&serve.data_dir);
    let cluster = match values.given("initial-cluster").filter(|text| !text.is_empty()) {
        None => alone(),
        Some(text) => match (read_cluster(text, name), is_known) {
            (Ok(cluster), _) => cluster,
            // It was of use at the first start only.
            (Err(_), true) => alone(),
            (Err(why), false) => return Err(why),
        },
    };
    if !is_known {
        check_duplicates(&cluster)?;
        if joins && cluster.len() < 2 {
            return Err(
                "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given \
                 URLs: --initial-cluster names no other member"
                    .to_owned(),
            );
        }
        if !joins {
            check_own_urls(&cluster, name, &own)?;
        }
    }
    serve.join = joins && !is_known;
    serve.initial_cluster = cluster
        .iter()
        .map(|(name, urls)| {
            let addresses = peer_addresses("initial-cluster", &urls[..1], Url::address)?;
            Ok(Founder {
                name: name.clone(),
                address: addresses[0].clone(),
            })
        })
        .collect::<Result<_, String>>()?;
    serve.advertise_peer = own_addresses.first().cloned();
    let texts = |urls: &[Url]| urls.iter().map(ToString::to_string).collect();
    serve.etcd.identity = Some(EtcdIdentity {
        founders: cluster
            .iter()
            .map(|(name, urls)| (name.clone(), texts(urls)))
            .collect(),
        advertise_peer: own_addresses,
    });
    Ok(())
}

fn read_cluster(text: &str, name: &str) -> Result<Members, String> {
    let cluster = parse_cluster(text).map_err(|why| format!("error setting up initial cluster: {why}"))?;
    for (_, urls) in &cluster {
        check_schemes("initial-cluster", urls)?;
    }
    match cluster.iter().any(|(known, _)| known == name) {
        true => Ok(cluster),
        false => Err(format!(
            "couldn't find local name {name:?} in the initial cluster configuration"
        )),
    }
}

fn check_duplicates(cluster: &Members) -> Result<(), String> {
    let all: Vec<String> = cluster
        .iter()
        .flat_map(|(_, urls)| urls)
        .map(ToString::to_string)
        .collect();
    let mut unique = all.clone();
    unique.sort();
    unique.dedup();
    match unique.len() == all.len() {
        true => Ok(()),
        false => Err(format!("initial cluster {} has duplicate url", shown(cluster))),
    }
}

/// A founder must be told as itself what the others are told of it.
fn check_own_urls(cluster: &Members, name: &str, own: &[Url]) -> Result<(), String> {
    let (_, listed) = cluster
        .iter()
        .find(|(known, _)| known == name)
        .expect("read with its name");
    if listed == own || is_same_place(listed, own) {
        return Ok(());
    }
    let without = |all: &[Url], others: &[Url]| -> Vec<String> {
        let missing = all.iter().filter(|url| !others.contains(url));
        missing.map(ToString::to_string).collect()
    };
    let only_listed = without(listed, own);
    if only_listed.is_empty() {
        return Err(format!(
            "--initial-advertise-peer-urls has {} but missing from --initial-cluster={}",
            without(own, listed).join(","),
            shown(&vec![(name.to_owned(), own.to_vec())])
        ));
    }
    let own: Vec<String> = own.iter().map(ToString::to_string).collect();
    Err(format!(
        "--initial-cluster has {} but missing from --initial-advertise-peer-urls={}",
        only_listed
            .iter()
            .map(|url| format!("{name}={url}"))
            .collect::<Vec<_>>()
            .join(","),
        own.join(",")
    ))
}

/// Whether both resolve to the same, one by one: a name here may be an address there.
fn is_same_place(one: &[Url], other: &[Url]) -> bool {
    let resolved = |urls: &[Url]| -> Option<Vec<Vec<std::net::SocketAddr>>> {
        let mut all = Vec::new();
        for url in urls {
            let address = url.address().ok()?;
            let mut found: Vec<_> = (address.host.as_str(), address.port)
                .to_socket_addrs()
                .ok()?
                .collect();
            found.sort();
            all.push(found);
        }
        all.sort();
        Some(all)
    };
    one.len() == other.len() && resolved(one).is_some_and(|one| Some(one) == resolved(other))
}

fn shown(cluster: &Members) -> String {
    let mut all: Vec<String> = cluster
        .iter()
        .flat_map(|(name, urls)| urls.iter().map(move |url| format!("{name}={url}")))
        .collect();
    all.sort();
    all.join(",")
}
