//! bimip
#[allow(missing_docs)]
pub mod proto { include!(concat!(env!("OUT_DIR"), "/bimip.v1.rs")); }
