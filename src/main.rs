//! The `bimip` program: everything is in [`bimip::cli`].

use std::process::ExitCode;

/// The process makes many small allocations for years, and mostly another thread frees them than the one that made them:
/// sessions allocate what the store's writer frees, and the other way round.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Configures jemalloc; `_RJEM_MALLOC_CONF` in the environment takes precedence.
///
/// By default a thread caches some tens of freed allocations of each size, and memory that one thread frees for another goes
/// through locks. So the threads' caches are larger. There are few arenas, so that freed memory is found again there. A
/// background thread returns memory to the system.
#[cfg(target_os = "linux")]
#[used]
#[allow(unsafe_code)] // jemalloc defines the symbol's name, and reads a thin C pointer there.
#[unsafe(export_name = "_rjem_malloc_conf")]
static ALLOCATOR_SETTINGS: &[u8; 102] =
    b"narenas:4,lg_tcache_nslots_mul:8,tcache_nslots_small_max:4000,lg_tcache_max:16,\
    background_thread:true\0";

fn main() -> ExitCode {
    bimip::cli::main()
}
