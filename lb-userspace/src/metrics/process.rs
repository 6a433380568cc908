//! The process itself, under the names that every Prometheus client library uses.

use std::fmt;

use procfs::{ProcResult, WithCurrentSystemInfo as _, process};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};

/// Reads `/proc/self` whenever it is asked.
#[derive(Debug)]
pub struct Process;

struct Reading {
    cpu_seconds: f64,
    resident_bytes: u64,
    open_files: usize,
    start_seconds: f64,
}

impl Reading {
    #[expect(
        clippy::cast_precision_loss,
        reason = "ticks and seconds stay far below 2^52"
    )]
    fn take() -> ProcResult<Self> {
        let process = process::Process::myself()?;
        let stat = process.stat()?;
        let seconds = |ticks: u64| ticks as f64 / procfs::ticks_per_second() as f64;
        Ok(Self {
            cpu_seconds: seconds(stat.utime + stat.stime),
            resident_bytes: stat.rss_bytes().get(),
            open_files: process.fd_count()?,
            start_seconds: procfs::boot_time_secs()? as f64 + seconds(stat.starttime),
        })
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        // Without `/proc` there is nothing to say.
        let Ok(reading) = Reading::take() else {
            return Ok(());
        };
        let Reading {
            cpu_seconds,
            resident_bytes,
            open_files,
            start_seconds,
        } = reading;
        let mut put = |name, help, metric: &dyn EncodeMetric| {
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        put(
            "process_cpu_seconds",
            "Time on a CPU, in user and system mode",
            &ConstCounter::new(cpu_seconds),
        )?;
        put(
            "process_resident_memory_bytes",
            "Memory that is resident",
            &ConstGauge::new(resident_bytes),
        )?;
        put(
            "process_open_fds",
            "Open file descriptors",
            &ConstGauge::new(open_files),
        )?;
        put(
            "process_start_time_seconds",
            "Start of the process, as Unix time",
            &ConstGauge::new(start_seconds),
        )
    }
}
