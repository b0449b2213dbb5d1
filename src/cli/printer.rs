//! Standard output for commands that run until they are told to stop.

use std::io;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::is_heard;
use super::limits::{PRINT_ENDS_WITHIN, PRINT_QUEUE_MAX};
use super::listen::{End, Stop};

/// Whom a line is told to: whether somebody reads it.
type Told = oneshot::Sender<io::Result<bool>>;

/// Writes lines on a thread of its own: a reader that has stopped to read, such as a pager or a suspended program, holds up
/// that thread only. The device goes on to answer the server, and signals are heard.
pub(super) struct Printer {
    lines: SyncSender<(String, Told)>,
}

impl Printer {
    pub(super) fn start() -> io::Result<Printer> {
        let (lines, queue) = sync_channel::<(String, Told)>(PRINT_QUEUE_MAX);
        // Nobody waits for its end: a write that is stuck ends with the process.
        thread::Builder::new().name("output".to_owned()).spawn(move || {
            while let Ok((line, told)) = queue.recv() {
                // If nobody waits any more, the command has ended.
                let _ = told.send(is_heard(&line));
            }
        })?;
        Ok(Printer { lines })
    }

    /// Prints a line and waits for that. Returns why there is nothing more to print, if so: nobody reads any more, or `stop`
    /// was wanted and the line was not taken within a moment.
    pub(super) async fn print(&self, line: String, stop: &mut Stop) -> io::Result<Option<End>> {
        let (told, mut printed) = oneshot::channel();
        match self.lines.try_send((line, told)) {
            Ok(()) => {}
            // A line before it is stuck, after which nothing is printed.
            Err(TrySendError::Full(_)) => return Err(io::ErrorKind::WouldBlock.into()),
            Err(TrySendError::Disconnected(_)) => return Err(io::ErrorKind::BrokenPipe.into()),
        }
        let heard = tokio::select! {
            biased;
            heard = &mut printed => heard,
            // Most lines only need their moment: they are printed and taken before the command ends.
            end = stop.wanted() => match timeout(PRINT_ENDS_WITHIN, printed).await {
                Ok(heard) => heard,
                Err(_) => return Ok(Some(end)),
            }
        };
        let heard = heard.unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))?;
        Ok(if heard { None } else { Some(End::Unheard) })
    }
}
