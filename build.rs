//! Compiles the schema with protox, so that no `protoc` has to be installed.

use std::error::Error;

const SCHEMA: &str = "proto/bimip/v1/bimip.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={SCHEMA}");
    let descriptors = protox::compile([SCHEMA], ["proto"])?;
    prost_build::Config::new()
        // `Bytes` instead of `Vec<u8>`: payload bytes are shared between devices instead of copied.
        .bytes(["."])
        .compile_fds(descriptors)?;
    Ok(())
}
