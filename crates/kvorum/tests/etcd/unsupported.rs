//! What kvorum does not serve yet. No requests are drawn for it; a row that is out of date fails a test.

use kvorum_client::proto::etcd;
use tonic::Code;

use crate::call::{Answer, Request, Server};

/// A part of the API that is there or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Grant, revoke, keep alive, look at leases.
    Lease,
    /// Maintenance.HashKV.
    HashKv,
    /// Maintenance.Defragment.
    Defragment,
}

/// Delete a row when the service is there: its requests are drawn from then on.
const UNSUPPORTED: &[Service] = &[];

/// Whether requests for it are drawn.
pub fn is_supported(service: Service) -> bool {
    !UNSUPPORTED.contains(&service)
}

/// Fails if kvorum serves what the table says that it does not.
pub async fn check(ours: &Server) {
    for service in UNSUPPORTED {
        let request = match service {
            Service::Lease => Request::LeaseLeases(etcd::LeaseLeasesRequest {}),
            Service::HashKv => Request::HashKv(etcd::HashKvRequest::default()),
            Service::Defragment => Request::Defragment(etcd::DefragmentRequest {}),
        };
        let answer = ours.call(0, request, None).await;
        assert!(
            matches!(answer, Answer::Refused(Code::Unimplemented, _)),
            "kvorum serves {service:?}: delete its row of UNSUPPORTED. It answered {answer:?}"
        );
    }
}
