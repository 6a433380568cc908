//! What the programs cost the verifier, against what `limits.yaml` says of the kernel that runs.
//! `UPDATE=1` writes what this kernel says, with room to grow.

use std::{collections::BTreeMap, env, fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, VerifierLogLevel,
    programs::{Program, ProgramError},
};
use lb_userspace::kernel::{OBJECT, loader};
use libtest_mimic::Completion;
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    utsname::uname,
};
use serde::{Deserialize, Serialize};

const COMMENT: &str = "\
# Upper bounds of what each kernel makes of our programs, a tenth above what it made of them; kernels
# that are not listed are held to the last. A program that outgrows its bound is to be looked at; then
# `UPDATE=1 cargo xtask test packet limits` writes those of this machine's kernel, and
# `UPDATE=1 cargo xtask vm-test` those of all others.
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

/// Loads every program there is, whether or not this kernel's agent would attach it.
pub fn check() -> Result<Completion> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("limits.yaml");
    let version = version()?;
    let found = measure()?;
    if env::var_os("UPDATE").is_some() {
        let mut all = read(&path)?;
        all.retain(|limits| limits.kernel != version);
        all.push(Limits {
            kernel: version.clone(),
            programs: found
                .iter()
                .map(|(name, size)| (name.clone(), size.with_room()))
                .collect(),
        });
        all.sort_by_key(|limits| numbers(&limits.kernel));
        let text = serde_saphyr::to_string(&all)?;
        fs::write(&path, format!("{COMMENT}{text}"))?;
    }
    let all = read(&path)?;
    let own = all.iter().position(|limits| limits.kernel == version);
    let limits = match own {
        Some(own) => all.get(own),
        None => all.last(),
    };
    let Limits { kernel, programs } = limits.context("limits.yaml is empty")?;
    for (name, size) in &found {
        let expected = match programs.get(name) {
            Some(bound) => format!("at most {} expected", bound.verified),
            None => "not in limits.yaml".to_owned(),
        };
        let verified = size.verified;
        println!("limits: {name}: {verified} instructions verified, {expected}");
    }
    ensure!(
        programs.keys().eq(found.keys()),
        "limits.yaml does not list the programs there are"
    );
    for (name, size) in &found {
        let bound = &programs[name];
        size.check(bound)
            .with_context(|| format!("{name}, bounds seen on {kernel}"))?;
    }
    Ok(Completion::Completed)
}

fn read(path: &Path) -> Result<Vec<Limits>> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    Ok(serde_saphyr::from_str(&text)?)
}

/// Major and minor version of the running kernel.
fn version() -> Result<String> {
    let release = uname()?.release().to_string_lossy().into_owned();
    let parts: Vec<_> = release.splitn(3, '.').take(2).collect();
    Ok(parts.join("."))
}

/// The numbers of a version, in the order of their weight.
fn numbers(version: &str) -> Vec<u32> {
    version
        .split('.')
        .map_while(|number| number.parse().ok())
        .collect()
}

/// What each program costs.
fn measure() -> Result<BTreeMap<String, Size>> {
    let mut sizes = BTreeMap::new();
    let mut ebpf = object()?;
    for (name, program) in ebpf.programs_mut() {
        load(program).with_context(|| format!("load {name}"))?;
        let info = program.info()?;
        let verified = match info.verified_instruction_count() {
            Some(verified) => verified,
            None => verified(name)?,
        };
        let translated = info.size_translated();
        sizes.insert(
            name.to_owned(),
            Size {
                verified,
                translated: translated.context("the kernel does not say how long programs are")?,
                jited: info.size_jitted(),
            },
        );
    }
    Ok(sizes)
}

/// How many instructions the verifier looks at, by what it writes at the end: kernels before 5.16
/// say so nowhere else. The library shows that only of a program that fails to load, so this one is
/// verified and then fails for want of a descriptor.
fn verified(name: &str) -> Result<u32> {
    let mut ebpf = object()?;
    let program = ebpf.program_mut(name).context("no such program")?;
    let (descriptors, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, 0, most)?;
    let loaded = load(program);
    setrlimit(Resource::RLIMIT_NOFILE, descriptors, most)?;
    let Err(ProgramError::LoadError { verifier_log, .. }) = loaded else {
        anyhow::bail!("{name} was loaded without a descriptor");
    };
    // "processed 172345 insns (limit 1000000) …"
    let log = verifier_log.to_string();
    let (_, count) = log
        .split_once("processed ")
        .with_context(|| format!("the verifier says no number: {log}"))?;
    let count = count.split(' ').next().unwrap_or_default();
    count.parse().with_context(|| log.clone())
}

fn object() -> Result<Ebpf> {
    loader(&0)
        .verifier_log_level(VerifierLogLevel::STATS)
        .load(OBJECT)
        .context("load the tables")
}

fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::SchedClassifier(program) => program.load(),
        Program::Xdp(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
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
