//! What the programs cost the verifier, against `limits.yaml`. `UPDATE=1` writes what this kernel
//! says, with room to grow.

use std::{collections::BTreeMap, env, fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Completion;
use nix::sys::utsname::uname;
use serde::{Deserialize, Serialize};

use crate::kernel::Kernel;

const COMMENT: &str = "\
# Upper bounds of what the kernel makes of our programs, a tenth above what `kernel` made of them.
# A program that outgrows its bound is to be looked at; then `UPDATE=1 cargo xtask test packet limits`.
";

#[derive(Deserialize, Serialize)]
struct Limits {
    kernel: String,
    programs: BTreeMap<String, Size>,
}

#[derive(Deserialize, Serialize)]
struct Size {
    /// Instructions that the verifier looked at, on all paths; kernels end at a million.
    verified: u32,
    /// Bytes of eBPF.
    translated: u32,
    /// Bytes of machine code, of x86-64.
    jited: u32,
}

pub fn check(kernel: &Kernel) -> Result<Completion> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("limits.yaml");
    let Some(found) = measure(kernel)? else {
        return Ok(Completion::ignored_with(
            "this kernel does not say what programs cost it",
        ));
    };
    if env::var_os("UPDATE").is_some() {
        let limits = Limits {
            kernel: version()?,
            programs: found
                .iter()
                .map(|(name, size)| (name.clone(), size.with_room()))
                .collect(),
        };
        fs::write(
            &path,
            format!("{COMMENT}{}", serde_saphyr::to_string(&limits)?),
        )?;
    }
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let Limits { kernel, programs } = serde_saphyr::from_str(&text)?;
    ensure!(
        programs.keys().eq(found.keys()),
        "limits.yaml does not list the programs there are"
    );
    for (name, size) in &found {
        size.check(&programs[name])
            .with_context(|| format!("{name}, bounds seen on {kernel}"))?;
    }
    Ok(Completion::Completed)
}

/// Major and minor version of the running kernel.
fn version() -> Result<String> {
    let release = uname()?.release().to_string_lossy().into_owned();
    let parts: Vec<_> = release.splitn(3, '.').take(2).collect();
    Ok(parts.join("."))
}

/// What each program costs; `None` where the kernel does not say.
fn measure(kernel: &Kernel) -> Result<Option<BTreeMap<String, Size>>> {
    let mut sizes = BTreeMap::new();
    for name in Kernel::programs() {
        let info = kernel.program(name).info()?;
        let (Some(verified), Some(translated)) =
            (info.verified_instruction_count(), info.size_translated())
        else {
            return Ok(None);
        };
        let jited = info.size_jitted();
        sizes.insert(
            name.to_owned(),
            Size {
                verified,
                translated,
                jited,
            },
        );
    }
    Ok(Some(sizes))
}

impl Size {
    fn fields(&self) -> [(&'static str, u32); 3] {
        let Self {
            verified,
            translated,
            jited,
        } = *self;
        [
            ("verified", verified),
            ("translated", translated),
            ("jited", jited),
        ]
    }

    fn with_room(&self) -> Self {
        let [verified, translated, jited] = self.fields().map(|(_, value)| value + value / 10);
        Self {
            verified,
            translated,
            jited,
        }
    }

    fn check(&self, bound: &Self) -> Result<()> {
        for ((what, value), (_, bound)) in self.fields().into_iter().zip(bound.fields()) {
            // Other machines' code has other sizes.
            if what == "jited" && env::consts::ARCH != "x86_64" {
                continue;
            }
            ensure!(
                value <= bound,
                "{what}: {value}, at most {bound} is expected"
            );
        }
        Ok(())
    }
}
