//! The three functions of libm that the compressors call, from a crate: the library itself would be 300 KiB more of resident memory
//! in every program that is preloaded. `tools/link` keeps these names inside the library. Called by the compressors.

#[unsafe(no_mangle)]
extern "C" fn log2(x: f64) -> f64 {
    libm::log2(x)
}

#[unsafe(no_mangle)]
extern "C" fn log10(x: f64) -> f64 {
    libm::log10(x)
}

#[unsafe(no_mangle)]
extern "C" fn pow(x: f64, y: f64) -> f64 {
    libm::pow(x, y)
}
