//! The `bimip` program: everything is in [`bimip::cli`].

use std::process::ExitCode;

/// Many small allocations of many threads, for years: the system's allocator fragments under that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    bimip::cli::main()
}
