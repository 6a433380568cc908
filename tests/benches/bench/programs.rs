//! Programs in the kernel with tables of their own, run by `BPF_PROG_TEST_RUN`.

use std::{fs, net::IpAddr};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf, EbpfLoader, Pod, TestRun as _,
    maps::{Array, HashMap, LpmTrie, lpm_trie::Key},
    programs::{Program, TestRunOptions},
};
use futures::{StreamExt as _, TryStreamExt as _};
use lb_userspace::kernel::{OBJECT, loader};
use nix::{
    sched::{CloneFlags, unshare},
    time::{ClockId, clock_gettime},
};
use object::{
    Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
    write::{Object, Symbol, SymbolSection},
};
use rtnetlink::{LinkUnspec, LinkVeth, packet_route::link::LinkMessage};

/// The interface that packets cross, and what is beyond it.
pub const INTERFACE: u32 = 7;
pub const NEIGHBOUR: [u8; 6] = [2, 0, 0, 0, 0, 99];

/// The programs that do nothing but pass the packet.
pub const EMPTY_TC: &str = "empty_tc";
pub const EMPTY_XDP: &str = "empty_xdp";

/// Loaded programs.
pub struct Programs(Ebpf);

impl Programs {
    /// Loads some of our programs.
    pub fn ours(names: &[&str]) -> Result<Self> {
        let ebpf = loader(&0).load(OBJECT).context("load the tables")?;
        Self(ebpf).load(names)
    }

    /// Loads the programs that do nothing.
    pub fn empty() -> Result<Self> {
        let ebpf = EbpfLoader::new().load(&nothing()?)?;
        Self(ebpf).load(&[EMPTY_TC, EMPTY_XDP])
    }

    fn load(mut self, names: &[&str]) -> Result<Self> {
        for &name in names {
            let program = self.0.program_mut(name);
            let program = program.with_context(|| format!("there is no program {name}"))?;
            match program {
                Program::SchedClassifier(program) => program.load(),
                Program::Xdp(program) => program.load(),
                _ => bail!("{name} cannot be run by itself"),
            }
            .with_context(|| format!("load {name}"))?;
        }
        Ok(self)
    }

    /// Runs a program `repeat` times over a packet that it may change, and returns the nanoseconds
    /// that one run took.
    pub fn run(&self, name: &str, packet: &[u8], repeat: u32) -> Result<f64> {
        let mut context = Vec::new();
        let mut options = TestRunOptions::new();
        options.data_in = Some(packet);
        options.repeat = repeat;
        let result = match self.0.program(name).context("no such program")? {
            Program::SchedClassifier(program) => {
                // `ifindex` of `struct __sk_buff` (linux/bpf.h).
                context.resize(40, 0);
                context.extend(INTERFACE.to_ne_bytes());
                options.ctx_in = Some(&context);
                program.test_run(options)
            }
            Program::Xdp(program) => {
                // `data_end` and `ingress_ifindex` of `struct xdp_md`.
                for word in [0, packet.len() as u32, 0, INTERFACE, 0, 0] {
                    context.extend(word.to_ne_bytes());
                }
                options.ctx_in = Some(&context);
                program.test_run(options)
            }
            _ => bail!("{name} cannot be run by itself"),
        };
        Ok(result
            .with_context(|| format!("run {name}"))?
            .duration
            .as_nanos() as f64)
    }

    /// Puts an entry into a hash.
    pub fn put<K: Pod, V: Pod>(&mut self, table: &str, key: &K, value: &V) -> Result<()> {
        let map = self.0.map_mut(table).context("no such table")?;
        HashMap::<_, K, V>::try_from(map)?.insert(key, value, 0)?;
        Ok(())
    }

    /// Puts an entry into a longest-prefix table.
    pub fn put_prefix<K: Pod, V: Pod>(
        &mut self,
        table: &str,
        bits: u32,
        key: &K,
        value: &V,
    ) -> Result<()> {
        let map = self.0.map_mut(table).context("no such table")?;
        LpmTrie::<_, K, V>::try_from(map)?.insert(&Key::new(bits, *key), value, 0)?;
        Ok(())
    }

    /// Sets a row of an array.
    pub fn set<V: Pod>(&mut self, table: &str, index: u32, row: &V) -> Result<()> {
        let map = self.0.map_mut(table).context("no such table")?;
        Array::<_, V>::try_from(map)?.set(index, row, 0)?;
        Ok(())
    }
}

/// What programs read as the time, in nanoseconds.
pub fn now() -> Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(std::time::Duration::from(time).as_nanos() as u64)
}

/// An object with two programs that do nothing.
fn nothing() -> Result<Vec<u8>> {
    let mut elf = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    let license = elf.add_section(Vec::new(), b"license".to_vec(), SectionKind::Data);
    elf.append_section_data(license, b"GPL\0", 1);
    // TC_ACT_UNSPEC, XDP_PASS.
    for (section, name, verdict) in [("classifier", EMPTY_TC, -1i32), ("xdp", EMPTY_XDP, 2)] {
        // r0 = verdict; exit
        let mut code = vec![0xb7, 0, 0, 0];
        code.extend(verdict.to_le_bytes());
        code.extend([0x95, 0, 0, 0, 0, 0, 0, 0]);
        let id = elf.add_section(Vec::new(), section.into(), SectionKind::Text);
        elf.append_section_data(id, &code, 8);
        elf.add_symbol(Symbol {
            name: name.into(),
            value: 0,
            size: code.len() as u64,
            kind: SymbolKind::Text,
            scope: SymbolScope::Linkage,
            weak: false,
            section: SymbolSection::Section(id),
            flags: SymbolFlags::None,
        });
    }
    Ok(elf.write()?)
}

/// Takes this thread to a new network namespace that forwards, with one interface and a neighbour
/// there to whom everything is routed.
pub fn enter_namespace(own: IpAddr, neighbour: IpAddr) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (connection, netlink, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        let mut pair: LinkMessage = LinkVeth::new("wire", "beyond").build();
        pair.header.index = INTERFACE;
        netlink.link().add(pair).execute().await?;
        let named = netlink.link().get().match_name("beyond").execute();
        let beyond = named.boxed().try_next().await?.context("no peer")?;
        for index in [INTERFACE, beyond.header.index] {
            let up = LinkUnspec::new_with_index(index).up().build();
            netlink.link().set(up).execute().await?;
        }
        netlink.address().add(INTERFACE, own, 24).execute().await?;
        netlink
            .neighbours()
            .add(INTERFACE, neighbour)
            .link_layer_address(&NEIGHBOUR)
            .execute()
            .await?;
        let everything = rtnetlink::RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix("0.0.0.0".parse()?, 0)?
            .gateway(neighbour)?
            .build();
        netlink.route().add(everything).execute().await?;
        Ok(())
    })
}
