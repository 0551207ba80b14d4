//! The API's service: each request is handed to the driver, and its answer waited for without blocking the others.

use api::{Fault, Reply, Request, Service};
use tokio::sync::oneshot;

use crate::machine::message::{Message, Notifier};

/// The way from the API's thread to the driver.
#[derive(Debug, Clone)]
pub struct DriverService(pub Notifier);

impl Service for DriverService {
    async fn call(&self, request: Request) -> Result<Reply, Fault> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Message::Request(Box::new(request), answer));
        answered.await.unwrap_or_else(|_| Err(Fault::bad_request("the microVM has ended")))
    }
}
