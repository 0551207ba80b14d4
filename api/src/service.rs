//! The seam between the contract and whoever fulfils it.

use crate::{Fault, Reply, Request};

/// Does what requests ask.
pub trait Service: Send + Sync + 'static {
    /// Does `request`, which is valid as far as the contract alone can tell.
    ///
    /// Calls from different connections overlap; each connection has one at a time. When a client goes away the
    /// future is dropped at its next suspension: what must not be left half done has to be handed over (to another
    /// thread or task) before the first `.await`.
    fn call(&self, request: Request) -> impl Future<Output = Result<Reply, Fault>> + Send;
}
