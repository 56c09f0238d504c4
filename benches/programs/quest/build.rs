//! Links the program with -lqmem_preload where QMEM_LIBRARIES names the folder it is in: one build with, one without. As a library
//! of the crate it comes before libc on the linker's command line, so that its malloc is the one found first.

fn main() {
    println!("cargo:rerun-if-env-changed=QMEM_LIBRARIES");
    if let Ok(folder) = std::env::var("QMEM_LIBRARIES") {
        println!("cargo:rustc-link-search=native={folder}");
        println!("cargo:rustc-link-lib=dylib=qmem_preload");
        println!("cargo:rustc-link-arg-bins=-Wl,-rpath,{folder}");
    }
}
