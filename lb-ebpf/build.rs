//! Tells the linker how to compile the programs.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("bpf") {
        // Copies and fills are loads and stores in place, not calls that go byte by byte.
        println!("cargo::rustc-link-arg-bins=--disable-expand-memcpy-in-order");
    }
}
