//! Nothing: the manifest beside it names the allocators that benches/heap/compare builds.
