//! The API's service: a request is handed to the driver, and its answer waited for without blocking the others.
//!
//! Who the VMM is and in what state is answered at once, from what the driver published: the driver may be waiting
//! for a disk, and a client that asks how things stand is not to wait with it.

use api::types::InstanceInfo;
use api::{FIRECRACKER_VERSION, Fault, Reply, Request, Service};
use tokio::sync::oneshot;

use crate::machine::message::{Message, Notifier};
use crate::machine::state::Publication;

/// The name under which the program answers `GET /`.
const APP_NAME: &str = "Faultless";

/// The way from the API's thread to the driver.
#[derive(Debug, Clone)]
pub struct DriverService {
    notifier: Notifier,
    publication: Publication,
}

impl DriverService {
    /// A service that hands requests to `notifier`, and knows the state from `publication`.
    #[must_use]
    pub fn new(notifier: Notifier, publication: Publication) -> Self {
        Self { notifier, publication }
    }

    fn instance_info(&self) -> InstanceInfo {
        let state = self.publication.state();
        InstanceInfo {
            app_name: APP_NAME.to_owned(),
            id: self.publication.instance_id().to_owned(),
            state: (&state).into(),
            failure: state.failure().map(str::to_owned),
            handler_failure: self.publication.handler_failure(),
            vmm_version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

impl Service for DriverService {
    async fn call(&self, request: Request) -> Result<Reply, Fault> {
        match request {
            Request::GetInstanceInfo => Ok(Reply::InstanceInfo(self.instance_info())),
            Request::GetVersion => Ok(Reply::Version(FIRECRACKER_VERSION.to_owned())),
            request => {
                let (answer, answered) = oneshot::channel();
                self.notifier.send(Message::Request(Box::new(request), answer));
                answered.await.unwrap_or_else(|_| Err(Fault::bad_request("the microVM has ended")))
            }
        }
    }
}
