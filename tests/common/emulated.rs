//! Whether this machine can run tests that need the emulated network.

use bimip::link::{Error, available};

use super::skip_outside_ci;

/// Whether network namespaces and their devices can be made here. If not, says which test is skipped, and what is missing.
pub fn link_is_possible() -> bool {
    match available() {
        Ok(()) => true,
        Err(Error::Missing(missing)) => {
            skip_outside_ci(missing);
            false
        }
        Err(error) => panic!("nothing is missing for a link, and there is none: {error}"),
    }
}
