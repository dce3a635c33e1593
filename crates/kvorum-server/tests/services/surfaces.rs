//! One keyspace under all surfaces, and what they share.

use kvorum_node::ReadFailure;
use kvorum_proto::etcdserverpb::{RangeRequest, kv_client::KvClient};
use kvorum_proto::kv::{self, kv_store_client::KvStoreClient};
use kvorum_proto::kv_pb::{self, kv_service_client::KvServiceClient};
use kvorum_server::SurfaceOptions;

use crate::etcd_kv::put;
use crate::replica::{Server, Setting, Trouble};
use crate::rest::{get, send};

const SURFACES: [&str; 5] = ["etcd", "KVStore", "KVService", "/kv", "/key"];

async fn write(server: &Server, surface: &str, key: &str) {
    let channel = server.channel().await;
    let body = format!(r#"{{"key":"{key}","value":"{surface}"}}"#);
    match surface {
        "etcd" => drop(
            KvClient::new(channel)
                .put(put(key.to_owned(), surface.to_owned()))
                .await
                .unwrap(),
        ),
        "KVStore" => {
            let request = kv::PutRequest {
                key: key.to_owned(),
                value: surface.to_owned().into(),
            };
            assert!(
                KvStoreClient::new(channel)
                    .put(request)
                    .await
                    .unwrap()
                    .into_inner()
                    .success
            );
        }
        "KVService" => {
            let (key, value) = (key.to_owned(), surface.to_owned());
            let request = kv_pb::SetRequest { key, value };
            drop(KvServiceClient::new(channel).set(request).await.unwrap());
        }
        "/kv" => assert_eq!(send(server, "POST", "/kv", "", body.as_bytes()).await.status, 200),
        _ => assert_eq!(
            send(server, "POST", "/key", "", body.as_bytes()).await.status,
            201
        ),
    }
}

async fn read(server: &Server, surface: &str, key: &str) -> String {
    let channel = server.channel().await;
    match surface {
        "etcd" => {
            let request = RangeRequest {
                key: key.to_owned().into(),
                ..RangeRequest::default()
            };
            let answer = KvClient::new(channel).range(request).await.unwrap().into_inner();
            String::from_utf8(answer.kvs[0].value.to_vec()).unwrap()
        }
        "KVStore" => {
            let request = kv::GetRequest { key: key.to_owned() };
            let answer = KvStoreClient::new(channel)
                .get(request)
                .await
                .unwrap()
                .into_inner();
            String::from_utf8(answer.value.to_vec()).unwrap()
        }
        "KVService" => {
            let request = kv_pb::GetRequest { key: key.to_owned() };
            KvServiceClient::new(channel)
                .get(request)
                .await
                .unwrap()
                .into_inner()
                .value
        }
        "/kv" => get(server, &format!("/kv/{key}")).await.json()["value"]
            .as_str()
            .unwrap()
            .to_owned(),
        _ => {
            let body = get(server, &format!("/key/{key}")).await.body;
            let (_, value) = body.split_once(" : \"").unwrap();
            value.strip_suffix("\" }").unwrap().to_owned()
        }
    }
}

#[tokio::test]
async fn what_is_written_through_one_surface_is_read_through_every_other() {
    let server = Server::start();
    for (number, writer) in SURFACES.iter().enumerate() {
        let key = format!("written-{number}");
        write(&server, writer, &key).await;
        for reader in SURFACES {
            assert_eq!(
                read(&server, reader, &key).await,
                *writer,
                "{writer} read through {reader}"
            );
        }
    }
}

#[tokio::test]
async fn a_value_that_is_not_utf_8_is_422_where_values_are_strings() {
    let server = Server::start();
    let mut kv = KvClient::new(server.channel().await);
    kv.put(put("binary", vec![0xc3, 0x28])).await.unwrap();
    assert_eq!(get(&server, "/kv/binary").await.status, 422);
    let answer = get(&server, "/key/binary").await;
    assert_eq!(answer.status, 422);
    assert!(
        answer.body.starts_with("the value is not UTF-8") && answer.body.ends_with('\n'),
        "{}",
        answer.body
    );
}

#[tokio::test]
async fn the_rest_routes_describe_themselves() {
    let answer = get(&Server::start(), "/openapi.json").await;
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (200, Some("application/json"))
    );
    let document = answer.json();
    assert_eq!(document["openapi"], "3.0.3");
    assert!(document["paths"]["/kv/{key}"]["get"].is_object());
}

/// The fields stand in the order in which the systems that are replaced write them.
#[tokio::test]
async fn json_to_the_byte() {
    let server = Server::start();
    for (path, status, body) in [
        (
            "/raft/info",
            200,
            r#"{"term":"3","commitIndex":"30","lastApplied":"29","lastLogIndex":"31","lastLogTerm":"2","state":"leader"}"#,
        ),
        (
            "/status",
            200,
            r#"{"node_id":"n7","state":"leader","current_term":3,"leader_id":"n7","peers":["n9"],"commit_index":30,"last_applied":29}"#,
        ),
        ("/kv/a", 404, r#"{"code":5,"message":"not found","details":[]}"#),
        ("/kv/", 400, r#"{"code":3,"message":"empty key","details":[]}"#),
    ] {
        let answer = get(&server, path).await;
        assert_eq!((answer.status, answer.body.as_str()), (status, body), "{path}");
    }
    let health = get(&server, "/health").await.body;
    assert!(
        health.starts_with(r#"{"status":"healthy","state":"leader","leader_id":"n7","timestamp":"20"#)
            && health.ends_with(r#"Z","health":"true","reason":""}"#),
        "{health}"
    );
}

#[tokio::test]
async fn health_in_etcds_meaning() {
    let server = Server::with(Setting {
        surfaces: SurfaceOptions {
            health_as_etcd: true,
            ..SurfaceOptions::default()
        },
        ..Setting::default()
    });
    let check = async |path: &str, status: u16, reason: &str| {
        let answer = get(&server, path).await;
        let fields = answer.json();
        let healthy = if status == 200 { "true" } else { "false" };
        let found = (
            answer.status,
            fields["health"].as_str(),
            fields["reason"].as_str(),
        );
        assert_eq!(found, (status, Some(healthy), Some(reason)), "{path}");
    };
    check("/health", 200, "").await;
    server.publish(|status| status.space_exhausted = true);
    check("/health", 503, "ALARM NOSPACE").await;
    check("/health?exclude=NOSPACE", 200, "").await;
    server.publish(|status| status.leader = 0);
    check("/health", 503, "RAFT NO LEADER").await;
    check("/health?serializable=true", 200, "").await;
    server.publish(|_| {});
    server.set(|b| b.reads = Some(Trouble::Failure(ReadFailure::TimedOut)));
    check("/health", 503, "RANGE ERROR:etcdserver: request timed out").await;
    check("/health?serializable=true", 200, "").await;
}
