//! The memory that unary answers may take together: such an answer exists whole before its first byte leaves.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

/// Bytes that are shared by all who answer. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Account>);

#[derive(Debug)]
struct Account {
    used: AtomicUsize,
    max: usize,
}

impl Budget {
    /// A budget of `max` bytes.
    pub fn new(max: usize) -> Self {
        Budget(Arc::new(Account {
            used: AtomicUsize::new(0),
            max,
        }))
    }

    /// What is free.
    pub fn free(&self) -> usize {
        self.0.max.saturating_sub(self.0.used.load(Ordering::Relaxed))
    }

    /// Takes bytes out, if they are there.
    pub fn reserve(&self, bytes: usize) -> Option<Reserved> {
        let fits = |used: usize| used.checked_add(bytes).filter(|used| *used <= self.0.max);
        self.0
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
            .ok()?;
        Some(Reserved {
            account: self.0.clone(),
            bytes,
        })
    }
}

/// Bytes taken out of a [`Budget`]; dropped, they go back.
#[derive(Debug)]
pub struct Reserved {
    account: Arc<Account>,
    bytes: usize,
}

impl Reserved {
    /// Gives back what is over `bytes`.
    pub fn shrink(&mut self, bytes: usize) {
        let over = self.bytes.saturating_sub(bytes);
        self.account.used.fetch_sub(over, Ordering::Relaxed);
        self.bytes -= over;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.account.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Travels with a response from its handler to [`hold`].
#[derive(Clone, Debug)]
pub(crate) struct Held {
    _reserved: Arc<Reserved>,
}

impl Held {
    pub(crate) fn new(reserved: Reserved) -> Self {
        Held {
            _reserved: Arc::new(reserved),
        }
    }
}

/// Keeps the response's reservation, if it has one, until its last byte was taken over by the connection.
pub(crate) fn hold(mut response: http::Response<Body>) -> http::Response<Body> {
    match response.extensions_mut().remove::<Held>() {
        Some(held) => response.map(|body| Body::new(Holding { body, _held: held })),
        None => response,
    }
}

struct Holding {
    body: Body,
    _held: Held,
}

impl HttpBody for Holding {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reserved_comes_back() {
        let budget = Budget::new(100);
        let mut first = budget.reserve(60).unwrap();
        assert!(budget.reserve(41).is_none());
        let second = budget.reserve(40).unwrap();
        assert_eq!(budget.free(), 0);
        first.shrink(10);
        first.shrink(50);
        assert_eq!(budget.free(), 50);
        drop((first, second));
        assert_eq!(budget.free(), 100);
        assert!(budget.reserve(usize::MAX).is_none());
    }

    #[test]
    fn a_response_holds_its_bytes_until_its_body_is_gone() {
        let budget = Budget::new(100);
        let mut response = http::Response::new(Body::new(http_body_util::Full::new(Bytes::from("answer"))));
        response
            .extensions_mut()
            .insert(Held::new(budget.reserve(70).unwrap()));
        let (parts, body) = hold(response).into_parts();
        drop(parts);
        assert_eq!(budget.free(), 30);
        drop(body);
        assert_eq!(budget.free(), 100);
    }
}
