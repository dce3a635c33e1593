use kvorum_node::WriteFailure;
use kvorum_proto::Outcome;
use kvorum_proto::kv::{self as pb, kv_store_client::KvStoreClient};
use tonic::{Code, Request};

use crate::replica::{Server, Trouble};

fn put(key: &str, value: &[u8]) -> pb::PutRequest {
    pb::PutRequest {
        key: key.to_owned(),
        value: value.to_vec().into(),
    }
}

#[tokio::test]
async fn put_get_delete_and_status() {
    let server = Server::start();
    let mut client = KvStoreClient::new(server.channel().await);
    let answer = client.put(put("a", b"\xff\x00")).await.unwrap().into_inner();
    assert_eq!(
        answer,
        pb::PutResponse {
            success: true,
            error: String::new(),
            index: 1
        }
    );
    let get = || pb::GetRequest { key: "a".to_owned() };
    let answer = client.get(get()).await.unwrap().into_inner();
    assert_eq!(
        (answer.found, &answer.value[..], &answer.error[..]),
        (true, &b"\xff\x00"[..], "")
    );
    let delete = || pb::DeleteRequest { key: "a".to_owned() };
    let answer = client.delete(delete()).await.unwrap().into_inner();
    assert_eq!(
        answer,
        pb::DeleteResponse {
            success: true,
            error: String::new(),
            index: 2
        }
    );
    assert!(!client.get(get()).await.unwrap().into_inner().found);
    // A deletion that finds nothing has an index as well.
    assert_eq!(client.delete(delete()).await.unwrap().into_inner().index, 3);

    let status = client
        .get_cluster_status(pb::ClusterStatusRequest {})
        .await
        .unwrap()
        .into_inner();
    let expected = pb::ClusterStatusResponse {
        node_id: "n7".to_owned(),
        state: "leader".to_owned(),
        current_term: 3,
        leader_id: "n7".to_owned(),
        peers: vec!["n9".to_owned()],
        commit_index: 30,
        last_applied: 29,
    };
    assert_eq!(status, expected);
}

#[tokio::test]
async fn refusals_by_the_store_and_everything_else() {
    let server = Server::start();
    let mut client = KvStoreClient::new(server.channel().await);
    let status = client.put(put("", b"x")).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::InvalidArgument, "etcdserver: key is not provided")
    );
    assert_eq!(Outcome::of(&status), Some(Outcome::NotApplied));

    server.set(|b| b.writes = Some(Trouble::Failure(WriteFailure::NoSpace)));
    let answer = client.put(put("a", b"x")).await.unwrap();
    assert_eq!(answer.metadata().get("kvorum-outcome").unwrap(), "not-applied");
    let answer = answer.into_inner();
    assert_eq!((answer.success, answer.index), (false, 0));
    assert_eq!(answer.error, "etcdserver: mvcc: database space exceeded");

    server.set(|b| b.writes = Some(Trouble::Failure(WriteFailure::LeaderLost)));
    let status = client
        .delete(pb::DeleteRequest { key: "a".to_owned() })
        .await
        .unwrap_err();
    assert_eq!(
        (status.code(), Outcome::of(&status)),
        (Code::Unavailable, Some(Outcome::Unknown))
    );
}

#[tokio::test]
async fn local_reads_by_metadata() {
    let server = Server::start();
    let mut client = KvStoreClient::new(server.channel().await);
    client.put(put("a", b"1")).await.unwrap();
    server.set(|b| b.reads = Some(Trouble::Failure(kvorum_node::ReadFailure::TimedOut)));
    let ask = |consistency: &str| {
        let mut request = Request::new(pb::GetRequest { key: "a".to_owned() });
        request
            .metadata_mut()
            .insert("kvorum-consistency", consistency.parse().unwrap());
        request
    };
    assert_eq!(
        client.get(ask("linearizable")).await.unwrap_err().code(),
        Code::Unavailable
    );
    assert!(client.get(ask("local")).await.unwrap().into_inner().found);
    assert_eq!(
        client.get(ask("whatever")).await.unwrap_err().code(),
        Code::InvalidArgument
    );
}

#[tokio::test]
async fn a_key_that_is_not_utf_8_is_the_callers_mistake() {
    let server = Server::start();
    let body = b"\x00\x00\x00\x00\x04\x0a\x02\xff\xfe".to_vec();
    let answer = crate::http_port::grpc_raw(&server, "/kv.KVStore/Put", body).await;
    assert_eq!(answer.get("grpc-status").unwrap(), "3");
    assert_eq!(answer.get("kvorum-outcome").unwrap(), "not-applied");
}
