//! Files of a trial for later analysis: QUIC traces of both sides, and the phone's pings on the clock of its trace.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::client::Builder;
use crate::transport::qlog::Traces;

/// The folder of one trial.
pub(super) struct Tracing {
    folder: PathBuf,
    phone: Traces,
    /// When each of the phone's traces began.
    began: Arc<Mutex<Vec<Instant>>>,
}

impl Tracing {
    pub(super) fn into(folder: &Path) -> anyhow::Result<Tracing> {
        let phone = Traces::in_folder(&folder.join("phone"), |_| {});
        let phone = phone.with_context(|| format!("writing traces to {}", folder.display()))?;
        Ok(Tracing { folder: folder.to_owned(), phone, began: Arc::default() })
    }

    pub(super) fn of_server(&self) -> PathBuf {
        self.folder.join("server")
    }

    pub(super) fn of_phone(&self, builder: Builder) -> Builder {
        let (traces, began) = (self.phone.clone(), self.began.clone());
        builder.qlog(move || {
            let mut began = began.lock().unwrap_or_else(PoisonError::into_inner);
            let trace = traces.begin(&format!("{:04}", began.len()))?;
            // The clock of quinn's trace starts right after this.
            began.push(Instant::now());
            Some(Box::new(trace))
        })
    }

    /// Writes `pings.csv`: when each ping was due, in seconds of the phone's last trace, and its round trip in
    /// milliseconds.
    pub(super) fn keep_pings(&self, pings: &[(Instant, Duration)]) -> anyhow::Result<()> {
        let Some(began) = self.began.lock().unwrap_or_else(PoisonError::into_inner).last().copied() else {
            return Ok(());
        };
        let mut lines = String::from("due_s,round_trip_ms\n");
        for (due, took) in pings.iter().filter(|(due, _)| *due >= began) {
            let due = (*due - began).as_secs_f64();
            _ = writeln!(lines, "{due:.6},{:.3}", took.as_secs_f64() * 1000.0);
        }
        let path = self.folder.join("pings.csv");
        std::fs::write(&path, lines).with_context(|| format!("writing {}", path.display()))
    }
}
