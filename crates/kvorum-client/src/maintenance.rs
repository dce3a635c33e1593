//! Alarms: what members say is wrong with them.

use tonic::transport::Channel;

use crate::proto::etcd::alarm_request::AlarmAction;
use crate::proto::etcd::maintenance_client::MaintenanceClient;
use crate::proto::etcd::{self, AlarmMember, AlarmType};
use crate::{Client, Error, MESSAGE_BYTES_MAX};

fn maintenance(channel: Channel) -> MaintenanceClient<Channel> {
    MaintenanceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

impl Client {
    /// The alarms that stand, read linearizably.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn alarms(&self) -> Result<etcd::AlarmResponse, Error> {
        let request = etcd::AlarmRequest {
            action: AlarmAction::Get.into(),
            member_id: 0,
            alarm: AlarmType::None.into(),
        };
        self.alarm(request).await
    }

    /// Disarms one alarm of one member; the answer has it, if it stood.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn disarm(&self, alarm: AlarmMember) -> Result<etcd::AlarmResponse, Error> {
        let request = etcd::AlarmRequest {
            action: AlarmAction::Deactivate.into(),
            member_id: alarm.member_id,
            alarm: alarm.alarm,
        };
        self.alarm(request).await
    }

    /// To disarm twice changes nothing more: such calls are repeated like reads.
    async fn alarm(&self, request: etcd::AlarmRequest) -> Result<etcd::AlarmResponse, Error> {
        self.read(request, |channel, request| async move {
            maintenance(channel).alarm(request).await
        })
        .await
    }
}
