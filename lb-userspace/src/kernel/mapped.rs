//! Array tables as shared memory: a write costs no system call, and none of its words tears.
#![expect(unsafe_code, reason = "the memory is the kernel's")]

use std::{
    marker::PhantomData,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context as _, Result};
use aya::{Pod, maps::MapData};
use memmap2::{MmapOptions, MmapRaw};

/// An array table. Its values begin at multiples of eight bytes, as the kernel places them.
pub struct Mapped<T> {
    memory: MmapRaw,
    length: usize,
    _values: PhantomData<T>,
}

/// The largest value, in words.
const WORDS: usize = 7;

impl<T: Pod> Mapped<T> {
    const STRIDE: usize = {
        assert!(size_of::<T>() <= WORDS * 8);
        size_of::<T>().div_ceil(8)
    };

    pub fn open(map: &MapData) -> Result<Self> {
        let length = map.info()?.max_entries() as usize;
        let memory = MmapOptions::new()
            .len(length * Self::STRIDE * 8)
            .map_raw(map.fd().as_fd().as_raw_fd())
            .context("map its memory")?;
        Ok(Self {
            memory,
            length,
            _values: PhantomData,
        })
    }

    /// Stores a value word by word: a value of one word changes at once, and whoever sees it also
    /// sees what was stored before.
    pub fn set(&self, index: u32, value: T) -> Result<()> {
        let mut words = [0u64; WORDS];
        // SAFETY: `words` has room for a `T`, and a `Pod` may be copied as bytes.
        unsafe { words.as_mut_ptr().cast::<T>().write_unaligned(value) };
        for (cell, word) in self.cells(index)?.iter().zip(words) {
            cell.store(word, Ordering::Release);
        }
        Ok(())
    }

    pub fn get(&self, index: u32) -> Result<T> {
        let mut words = [0u64; WORDS];
        for (word, cell) in words.iter_mut().zip(self.cells(index)?) {
            *word = cell.load(Ordering::Acquire);
        }
        // SAFETY: `words` begins with the bytes of a `T`, and any bytes are a `Pod`.
        Ok(unsafe { words.as_ptr().cast::<T>().read_unaligned() })
    }

    /// Every value with its index.
    pub fn iter(&self) -> impl Iterator<Item = (u32, T)> {
        (0..self.length as u32).filter_map(|index| Some((index, self.get(index).ok()?)))
    }

    fn cells(&self, index: u32) -> Result<&[AtomicU64]> {
        let first = index as usize * Self::STRIDE;
        // SAFETY: the mapping is page aligned, as long as this says, lives as long as `self`, and is
        // only ever accessed as atomic words by us and as aligned words by the programs.
        let cells = unsafe {
            std::slice::from_raw_parts(
                self.memory.as_ptr().cast::<AtomicU64>(),
                self.length * Self::STRIDE,
            )
        };
        cells
            .get(first..first + Self::STRIDE)
            .with_context(|| format!("there is no entry {index}"))
    }
}
