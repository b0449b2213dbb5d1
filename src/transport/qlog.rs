//! Traces of QUIC connections in qlog's JSON-SEQ, one file each, which show what happened on a path.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quinn::ServerConfig;
use tokio::sync::watch;

use super::quic::{self, AcceptWith, QuicError};
use crate::clock::Now;
use crate::config::QuicConfig;
use crate::limits::{QLOG_FILE_BYTES_MAX, QLOG_FILES_MAX};
use crate::observe::TraceResult;

/// The file names' extension: qlog's own convention for JSON-SEQ, which its viewers know.
const ENDING: &str = "sqlog";

/// A folder of traces: at most [`QLOG_FILES_MAX`] files of at most [`QLOG_FILE_BYTES_MAX`] bytes. The oldest finished trace
/// makes room for a new one. While all of them are still being written, a further connection is not traced.
#[derive(Clone)]
pub struct Traces(Arc<Shared>);

struct Shared {
    folder: PathBuf,
    count: Box<dyn Fn(TraceResult) + Send + Sync>,
    files: Mutex<Files>,
}

#[derive(Default)]
struct Files {
    /// Number of traces being written.
    open: usize,
    /// Finished traces, oldest first, including those of earlier processes.
    finished: VecDeque<PathBuf>,
}

impl Traces {
    /// Creates the folder if it is missing. `count` is called with each trace's result.
    ///
    /// # Errors
    /// The folder cannot be created or read.
    pub fn in_folder(folder: &Path, count: impl Fn(TraceResult) + Send + Sync + 'static) -> io::Result<Traces> {
        fs::create_dir_all(folder)?;
        let mut finished = Vec::new();
        for entry in fs::read_dir(folder)? {
            finished.push(entry?.path());
        }
        finished.retain(|path| path.extension().is_some_and(|ending| ending == ENDING));
        // Names begin with the time.
        finished.sort();
        let files = Mutex::new(Files { open: 0, finished: finished.into() });
        Ok(Traces(Arc::new(Shared { folder: folder.to_owned(), count: Box::new(count), files })))
    }

    /// Begins a trace. Returns `None` if there is no room or the file cannot be created, which must not keep a device away.
    /// `name` must differ for each connection.
    pub fn begin(&self, name: &str) -> Option<Trace> {
        let path = self.0.folder.join(format!("{name}.{ENDING}"));
        let begun = self.0.make_room().and_then(|()| File::create_new(&path).inspect_err(|_| self.0.files().open -= 1));
        match begun {
            Ok(file) => {
                (self.0.count)(TraceResult::Begun);
                let file = BufWriter::new(file);
                Some(Trace { shared: self.0.clone(), path, record: Vec::new(), file, written: 0, cut: false })
            }
            Err(error) => {
                tracing::debug!(file = %path.display(), %error, "a connection is not traced");
                (self.0.count)(TraceResult::Refused);
                None
            }
        }
    }
}

impl Shared {
    /// Takes a place for one more trace.
    fn make_room(&self) -> io::Result<()> {
        let mut files = self.files();
        while files.open + files.finished.len() >= QLOG_FILES_MAX {
            let Some(oldest) = files.finished.pop_front() else {
                return Err(io::Error::other("as many connections as there may be traces have one"));
            };
            // Somebody may have removed it already.
            let _ = fs::remove_file(oldest);
        }
        files.open += 1;
        Ok(())
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection's trace: a writer that never fails, because a full disk must not disturb a connection. The file ends with the
/// last whole record that fits.
pub struct Trace {
    shared: Arc<Shared>,
    path: PathBuf,
    /// The part of a record that was written so far.
    record: Vec<u8>,
    file: BufWriter<File>,
    written: u64,
    cut: bool,
}

impl Trace {
    fn end_record(&mut self) {
        let length = self.record.len() as u64;
        let fits = self.written + length <= QLOG_FILE_BYTES_MAX;
        if fits && self.file.write_all(&self.record).is_ok() {
            self.written += length;
        } else {
            self.cut = true;
            (self.shared.count)(TraceResult::Cut);
        }
        self.record.clear();
    }
}

impl Write for Trace {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.cut {
            self.record.extend_from_slice(bytes);
            if bytes.ends_with(b"\n") {
                self.end_record();
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        // A trace that was cut was counted already; any other ends well, or is cut when it is dropped.
        let _ = self.file.flush();
        Ok(())
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = self.file.flush();
        let mut files = self.shared.files();
        files.open -= 1;
        files.finished.push_back(std::mem::take(&mut self.path));
    }
}

/// Gives each connection a trace in the folder of `traces`. The file is named after the time and the connection id to which the
/// client sent its first packet, so that the client knows it, too. `server` holds the newest configuration, with which
/// connections without a trace are accepted.
///
/// # Errors
/// [`QuicError::Settings`] if the transport's settings cannot be used.
pub fn accept_with(
    server: watch::Receiver<Arc<ServerConfig>>,
    config: QuicConfig,
    traces: Traces,
) -> Result<AcceptWith, QuicError> {
    quic::transport(&config)?;
    Ok(Arc::new(move |incoming| {
        let mut transport = quic::transport(&config).ok()?;
        let trace = traces.begin(&format!("{}-{}", Now::system().unix_ms, incoming.orig_dst_cid()))?;
        let mut stream = quinn::QlogConfig::default();
        let about = format!("bimip server to {}", incoming.remote_address());
        stream.writer(Box::new(trace)).title(Some(about));
        transport.qlog_stream(stream.into_stream());
        let mut server = ServerConfig::clone(&server.borrow());
        server.transport_config(Arc::new(transport));
        Some(Arc::new(server))
    }))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Counts begun, refused and cut traces.
    fn counted(folder: &Path) -> (Traces, Arc<[AtomicUsize; 3]>) {
        let counts = Arc::new([const { AtomicUsize::new(0) }; 3]);
        let counting = counts.clone();
        let count = move |result| _ = counting[result as usize].fetch_add(1, Ordering::Relaxed);
        (Traces::in_folder(folder, count).unwrap(), counts)
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_oldest_finished_trace_makes_room_and_open_ones_stay() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("0-of-an-earlier-process.sqlog"), "").unwrap();
        fs::write(folder.path().join("0-not-ours.txt"), "").unwrap();
        let (traces, counts) = counted(folder.path());
        let open: Vec<_> = (1..QLOG_FILES_MAX).map(|n| traces.begin(&format!("1-{n:04}")).unwrap()).collect();
        assert_eq!(names(folder.path()).len(), QLOG_FILES_MAX + 1);

        let last = traces.begin("2").unwrap();
        let now = names(folder.path());
        assert_eq!(
            (now.len(), now[0].as_str(), now[1].as_str()),
            (QLOG_FILES_MAX + 1, "0-not-ours.txt", "1-0001.sqlog")
        );
        assert!(traces.begin("3").is_none(), "all are being written");
        drop(last);
        let _next = traces.begin("3").unwrap();
        let now = names(folder.path());
        assert_eq!((now.len(), now.last().unwrap().as_str()), (QLOG_FILES_MAX + 1, "3.sqlog"));
        assert!(!now.contains(&"2.sqlog".to_owned()));
        drop(open);
        assert_eq!(counts.each_ref().map(|count| count.load(Ordering::Relaxed)), [QLOG_FILES_MAX + 1, 1, 0]);
    }

    #[test]
    fn a_trace_that_is_too_long_ends_with_a_whole_record() {
        let folder = tempfile::tempdir().unwrap();
        let (traces, counts) = counted(folder.path());
        let mut trace = traces.begin("long").unwrap();
        let record = format!("{}\n", "x".repeat(999));
        for _ in 0..=QLOG_FILE_BYTES_MAX / 1000 + 5 {
            let (first, second) = record.split_at(500);
            trace.write_all(first.as_bytes()).unwrap();
            trace.write_all(second.as_bytes()).unwrap();
        }
        trace.write_all(b"half a record").unwrap();
        drop(trace);
        let written = fs::read_to_string(folder.path().join("long.sqlog")).unwrap();
        assert_eq!(written.len() as u64, QLOG_FILE_BYTES_MAX / 1000 * 1000);
        assert!(written.ends_with('\n'));
        assert_eq!(counts[TraceResult::Cut as usize].load(Ordering::Relaxed), 1, "counted once");
    }

    #[test]
    fn where_no_file_can_be_made_a_connection_is_not_traced_and_takes_no_place() {
        let folder = tempfile::tempdir().unwrap();
        let (traces, counts) = counted(folder.path());
        fs::remove_dir(folder.path()).unwrap();
        for _ in 0..=QLOG_FILES_MAX {
            assert!(traces.begin("a").is_none());
        }
        fs::create_dir(folder.path()).unwrap();
        assert!(traces.begin("a").is_some());
        assert_eq!(counts[TraceResult::Refused as usize].load(Ordering::Relaxed), QLOG_FILES_MAX + 1);
    }
}
