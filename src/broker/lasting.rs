//! An exchange with the model's API that goes on without the child, because the API bills it in any case.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::Response;
use tokio::runtime::Handle;

use super::Shared;
use super::body::Body;
use super::refusal::Refusal;

type Answer = Result<Response<Body>, Refusal>;

/// A wait for the head of a response. If it is given up, it goes on by itself, then its body is read for the tokens.
pub(super) struct Lasting {
    shared: Arc<Shared>,
    exchange: Option<Pin<Box<dyn Future<Output = Answer> + Send>>>,
}

impl Lasting {
    /// `exchange` has a time limit of its own.
    pub(super) fn new(shared: Arc<Shared>, exchange: impl Future<Output = Answer> + Send + 'static) -> Self {
        Self { shared, exchange: Some(Box::pin(exchange)) }
    }
}

impl Future for Lasting {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        let Some(exchange) = &mut self.exchange else { return Poll::Pending };
        let polled = exchange.as_mut().poll(context);
        if polled.is_ready() {
            self.exchange = None;
        }
        polled
    }
}

impl Drop for Lasting {
    fn drop(&mut self) {
        if let Some(exchange) = self.exchange.take() {
            // Dropping the response has its rest read.
            spawn(&self.shared, async { drop(exchange.await) });
        }
    }
}

/// Runs until the system has ended; not at all while the runtime shuts down.
pub(super) fn spawn(shared: &Shared, work: impl Future<Output = ()> + Send + 'static) {
    if let Ok(runtime) = Handle::try_current() {
        let work = shared.ended.clone().run_until_cancelled_owned(work);
        shared.tasks.spawn_on(work, &runtime);
    }
}
