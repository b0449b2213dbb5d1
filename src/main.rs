//! The `bimip` program: everything is in [`bimip::cli`].

use std::process::ExitCode;

/// Many small allocations for years, most of them freed by another thread than the one that made them: sessions make
/// what the writer frees, and the other way round.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// How the allocator is set up; `_RJEM_MALLOC_CONF` in the environment goes before it.
///
/// Threads keep much of what they free, to give out again: by default some tens of each size, and what one thread frees
/// for another goes through locks. Few arenas, so that it is found again there. What is given back to the system is by a
/// thread that does nothing else.
#[cfg(target_os = "linux")]
#[used]
#[allow(unsafe_code)] // The name is the allocator's own, and what it finds there a thin pointer, as C has it.
#[unsafe(export_name = "_rjem_malloc_conf")]
static ALLOCATOR_SETTINGS: &[u8; 102] =
    b"narenas:4,lg_tcache_nslots_mul:8,tcache_nslots_small_max:4000,lg_tcache_max:16,\
    background_thread:true\0";

fn main() -> ExitCode {
    bimip::cli::main()
}
