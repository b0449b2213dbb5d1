//! The source of the token that signs a device in: fixed, or fetched when needed.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;

/// Why the token source has no token. The device reports it as [`CloseReason::NoToken`](super::CloseReason::NoToken).
pub type TokenError = Box<dyn Error + Send + Sync>;

/// Supplies the JWT that signs the device in (protocol.md §5).
///
/// The device asks for a token before every connection, before the current token expires (at least 60 s before, or a
/// tenth of its remaining life if that is shorter), and after the server has refused one. Two calls may run at the same
/// time, for example when a token is renewed while another transport is tried. A call that takes over 10 s is dropped
/// and counts as failed; the device then tries again later.
///
/// A `String` is a fixed token; an async closure fetches one:
///
/// ```
/// # use bimip::client::{TokenError, TokenSource};
/// async fn renewed() -> Result<String, TokenError> {
///     Ok("from your sign-in service".to_owned())
/// }
/// fn accepts(_: impl TokenSource) {}
/// accepts(renewed);
/// accepts("a fixed one".to_owned());
/// ```
pub trait TokenSource: Send + Sync + 'static {
    /// Returns the token to use now. The future is dropped if it takes longer than 10 s
    /// ([`LOOKUP_WITHIN`](super::limits::LOOKUP_WITHIN)).
    ///
    /// # Errors
    /// Why there is no token. The device asks again after a backoff, or after 10 s if the token was to be renewed.
    fn token(&self) -> Pin<Box<dyn Future<Output = Result<String, TokenError>> + Send + '_>>;

    /// The server refuses this token or no longer accepts it, whatever the device's clock says. A source that caches
    /// tokens should forget it: if it returns the same token again, the device stops. Called before the device asks for
    /// another token. Must not block.
    fn refused(&self, token: &str) {
        let _ = token;
    }
}

impl TokenSource for String {
    fn token(&self) -> Pin<Box<dyn Future<Output = Result<String, TokenError>> + Send + '_>> {
        Box::pin(std::future::ready(Ok(self.clone())))
    }
}

impl<F, T> TokenSource for F
where
    F: Fn() -> T + Send + Sync + 'static,
    T: Future<Output = Result<String, TokenError>> + Send + 'static,
{
    fn token(&self) -> Pin<Box<dyn Future<Output = Result<String, TokenError>> + Send + '_>> {
        Box::pin(self())
    }
}
