//! Where the token comes from: fixed, or fetched anew whenever one is needed.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;

/// Why there is no token.
pub type TokenError = Box<dyn Error + Send + Sync>;

/// Gives the JWT that signs the device in (profile 3).
///
/// Asked before every connection, before the current token runs out, and when the server has refused one; also twice at the
/// same time, as when a token is renewed while another transport is tried. An answer that takes over ten seconds is not
/// waited for. A `String` is a fixed token; an async closure fetches one:
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
    /// The token to use now. Dropped when it takes longer than the device waits.
    fn token(&self) -> Pin<Box<dyn Future<Output = Result<String, TokenError>> + Send + '_>>;

    /// The server refuses this token, or no longer takes it, whatever the device's clock says: a source that keeps tokens
    /// forgets it. The device stops if it is given the same one again. Called before it asks for another; must not block.
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
