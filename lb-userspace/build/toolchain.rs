//! Finds what the eBPF programs are built with: a Rust compiler that can build `core` for the bpf
//! target, and bpf-linker. Shared by the build script, which uses them, and by `cargo xtask
//! setup`, which installs them.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// The LLVM that the linker is built with; it reads the bitcode of compilers up to this one.
pub const LLVM: u32 = 22;

/// The oldest bpf-linker (0.x) that can be built with [`LLVM`].
const LINKER_MINOR: u32 = 13;

/// The oldest compiler (1.x) that takes this workspace.
const RUSTC_MINOR: u32 = 89;

/// The name under which rustup knows the compiler of Debian's packages once it is linked.
pub const DEBIAN_TOOLCHAIN: &str = "bpf";

/// The rustup name of the first installed toolchain that can build the eBPF programs: a nightly,
/// or Debian's compiler.
pub fn compiler() -> Option<String> {
    let listed = output(Command::new("rustup").args(["toolchain", "list", "--quiet"]))?;
    let mut names: Vec<&str> = listed
        .lines()
        .map(str::trim)
        .filter(|name| name.starts_with("nightly") || *name == DEBIAN_TOOLCHAIN)
        .collect();
    names.sort_by_key(|name| *name == DEBIAN_TOOLCHAIN);
    names
        .into_iter()
        .find(|name| {
            let rustc = |args: &[&str]| {
                output(
                    Command::new("rustup")
                        .args(["run", name, "rustc"])
                        .args(args),
                )
            };
            builds_for_bpf(rustc).is_some()
        })
        .map(str::to_owned)
}

/// Whether the compiler behind `rustc` is new enough, speaks an LLVM that the linker reads, and
/// has the source of `core` beside it.
fn builds_for_bpf(rustc: impl Fn(&[&str]) -> Option<String>) -> Option<()> {
    let version = rustc(&["-vV"])?;
    let field = |name: &str| version.lines().find_map(|line| line.strip_prefix(name));
    let fits =
        minor(field("release: 1.")?)? >= RUSTC_MINOR && minor(field("LLVM version: ")?)? <= LLVM;
    let sysroot = rustc(&["--print", "sysroot"])?;
    let core = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml");
    (fits && core.exists()).then_some(())
}

/// The installed bpf-linker, if it is new enough.
pub fn linker() -> Option<PathBuf> {
    let path = search("bpf-linker")?;
    let version = output(Command::new(&path).arg("--version"))?;
    let version = version.strip_prefix("bpf-linker 0.")?;
    (minor(version)? >= LINKER_MINOR).then_some(path)
}

/// Where `program` is: cargo's own folder, which rustup puts first, or `PATH`.
pub fn search(program: &str) -> Option<PathBuf> {
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(env::home_dir()?.join(".cargo")));
    let path = env::var_os("PATH").unwrap_or_default();
    cargo_home
        .map(|home| home.join("bin"))
        .into_iter()
        .chain(env::split_paths(&path))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// The number at the start of `version`.
fn minor(version: &str) -> Option<u32> {
    let end = version
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(version.len());
    version[..end].parse().ok()
}

/// What `command` prints, if it runs and succeeds.
fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
